"""Wheels: built from the sdist, with CUDA and without, they hold what they should and run where there is only torch."""

import contextlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import Distribution, distributions
from pathlib import Path

import pytest
from empty_environment import EmptyEnvironment
from fatbin import gpu_code

from eidetic_kernels.version import __version__

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="compiled modules are built on Linux")
ROOT = Path(__file__).parents[1]
SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
KINDS = ("cpu", "cuda")


@pytest.fixture(scope="module")
def script():
    """setup.py as a module; its setup() runs only when it is the program."""
    spec = importlib.util.spec_from_file_location("eidetic_setup", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("csrc", "eidetic_kernels", "python", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "eidetic_kernels" / f"_left_over{SUFFIX}").touch()
    return built("sdist", folder, tmp_path_factory.mktemp("dist"))[0]


@pytest.fixture(scope="module")
def sources(sdist, tmp_path_factory) -> Path:
    with tarfile.open(sdist) as archive:
        folder = tmp_path_factory.mktemp("sources")
        archive.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))
    return folder / sdist.name.removesuffix(".tar.gz")


@pytest.fixture(scope="module")
def wheels(sources, tmp_path_factory) -> dict[str, Path]:
    """The one with CUDA, if that can be, is built first and in the same folder: nothing of it may stay."""
    found = {}
    folder = tmp_path_factory.mktemp("wheels")
    if shutil.which("nvcc"):
        found["cuda"], _ = built("wheel", sources, folder, EIDETIC_FORCE_CUDA="1", EIDETIC_CUDA_ARCHS="8.0")
    found["cpu"], _ = built("wheel", sources, folder, EIDETIC_CPU_ONLY="1")
    return found


@pytest.fixture(scope="module")
def environments(wheels, tmp_path_factory) -> dict[str, EmptyEnvironment]:
    return {kind: EmptyEnvironment(tmp_path_factory.mktemp(kind), wheel) for kind, wheel in wheels.items()}


def built(what: str, sources: Path, folder: Path, **variables: str) -> tuple[Path, str]:
    """Runs the build backend as pip does, in `sources`, without fetching anything; (what it made, what it said)."""
    code = f"from setuptools import build_meta; print('made', build_meta.build_{what}({str(folder)!r}))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("EIDETIC_")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=sources, env={**environment, **variables}, capture_output=True, text=True
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return folder / re.findall(r"^made (.*)$", done.stdout, re.MULTILINE)[-1], said


def of(kind: str, found: dict):
    if kind not in found:
        pytest.skip("there is no nvcc")
    return found[kind]


def modules(kind: str) -> set[str]:
    return {f"eidetic_kernels/_{one}{SUFFIX}" for one in KINDS[: KINDS.index(kind) + 1]}


def cuda_mark() -> str:
    release = re.search(r"release (\d+)\.(\d+)", subprocess.check_output(["nvcc", "--version"], text=True))
    return f"+cu{release[1]}{release[2]}"


@pytest.mark.slow
def test_the_sdist_holds_the_sources_and_no_build(sdist):
    assert sdist.name == f"eidetic_kernels-{__version__}.tar.gz"
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    compiled = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("csrc/**/*") if path.is_file()}
    assert compiled and compiled <= names
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_wheel_says_whether_it_has_cuda(kind, wheels):
    version = __version__ + (cuda_mark() if kind == "cuda" else "")
    assert of(kind, wheels).name.startswith(f"eidetic_kernels-{version}-{sys.implementation.name[:2]}3")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_wheel_holds_the_packages_and_the_modules_alone(kind, wheels):
    with zipfile.ZipFile(of(kind, wheels)) as archive:
        names = set(archive.namelist())
    python = {path.relative_to(ROOT).as_posix() for path in ROOT.glob("eidetic_kernels/**/*.py")}
    driver = {path.relative_to(ROOT / "python").as_posix() for path in ROOT.glob("python/eidetic_training/**/*.*")}
    driver = {name for name in driver if name.endswith((".py", ".toml"))}
    typed = {"eidetic_kernels/py.typed", "eidetic_training/py.typed"}
    expected = python | driver | modules(kind) | typed
    assert expected <= names and not {name for name in names - expected if ".dist-info/" not in name}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_modules_depend_on_the_c_library_and_openmp_alone(kind, environments):
    for module in sorted(modules(kind)):
        said = subprocess.check_output(["ldd", of(kind, environments).site / module], text=True)
        needed = {line.split()[0].partition(".so")[0].rpartition("/")[2] for line in said.splitlines()}
        system = {"linux-vdso", "ld-linux-x86-64", "ld-linux-aarch64", "libc", "libm", "libpthread", "libdl", "librt"}
        # Where the compiler has no static C++ library, the shared one.
        assert needed <= system | {"libgomp", "libstdc++", "libgcc_s"}, said


@pytest.mark.slow
def test_the_cuda_module_holds_what_was_asked_for(environments):
    environment = of("cuda", environments)
    assert gpu_code(environment.site / f"eidetic_kernels/_cuda{SUFFIX}") == {"sm_80", "compute_80"}
    said = environment.run("-c", "from eidetic_kernels import _cuda; print(_cuda.code())")
    assert said.stdout.strip() == "sm_80:compute_80"


RUNS = """
import importlib, importlib.metadata, json, sys
import torch, eidetic_kernels as ek
from eidetic_kernels.backends import extensions

class Net(ek.EideticNetwork):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(ek.EideticLinear(5, 8), ek.EideticBatchNorm1d(8), torch.nn.ReLU())
    def forward(self, x):
        return self.body(x)

net, x = Net(), torch.randn(6, 5)
net.prepare_for_task(0, num_classes=3)
net(x).sum().backward()
net.finish_task()
assert net.eval()(x, task=0).isfinite().all()
imported = {}
for name in ("_cpu", "_cuda"):
    try:
        imported[name] = importlib.import_module(f"eidetic_kernels.{name}").__doc__
    except ImportError as error:
        imported[name] = None
print(json.dumps({
    "file": ek.__file__,
    "version": importlib.metadata.version("eidetic-kernels"),
    "imported": imported,
    "why_missing": {name: extensions.why_missing(name) for name in imported},
    "torch_cuda": torch.version.cuda,
    "gpu": torch.cuda.is_available(),
    "optional": [name for name in ("pyarrow", "PIL", "matplotlib", "pybind11") if importlib.util.find_spec(name)],
}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_wheel_runs_where_there_is_only_torch(kind, environments):
    environment = of(kind, environments)
    done = environment.run("-I", "-W", "error", "-c", RUNS)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert Path(said["file"]).is_relative_to(environment.site) and said["optional"] == []
    assert said["version"] == __version__ + (cuda_mark() if kind == "cuda" else "")
    assert said["imported"]["_cpu"] and said["why_missing"]["_cpu"] is None
    assert bool(said["imported"]["_cuda"]) is (kind == "cuda")
    if kind == "cpu":
        assert "not built" in said["why_missing"]["_cuda"]
    elif not said["gpu"]:
        assert "is built for CUDA" in said["why_missing"]["_cuda"] or "without CUDA" in said["why_missing"]["_cuda"]
    elif said["torch_cuda"].split(".")[0] == cuda_mark()[3:5]:
        assert said["why_missing"]["_cuda"] is None


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_wheel_checks_itself(kind, environments):
    done = of(kind, environments).run("-I", "-W", "error", "-m", "eidetic_kernels")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_a_damaged_module_is_warned_of_once_and_torch_runs(environments):
    environment = environments["cpu"]
    module = environment.site / f"eidetic_kernels/_cpu{SUFFIX}"
    with moved_away(module):
        module.write_bytes(b"no ELF file")
        done = environment.run("-I", "-c", RUNS)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("RuntimeWarning") == 1
    assert "eidetic_kernels._cpu cannot be used, torch runs in its place" in done.stderr
    assert "fails to load (ImportError" in json.loads(done.stdout.splitlines()[-1])["why_missing"]["_cpu"]


@pytest.mark.slow
def test_a_module_for_another_python_is_named(environments):
    environment = environments["cpu"]
    with moved_away(environment.site / f"eidetic_kernels/_cpu{SUFFIX}"):
        (environment.site / "eidetic_kernels/_cpu.cpython-27-x86_64-linux-gnu.so").touch()
        done = environment.run("-I", "-W", "error", "-c", RUNS)
    assert done.returncode == 0, done.stderr
    reason = json.loads(done.stdout.splitlines()[-1])["why_missing"]["_cpu"]
    assert "not built for this Python (there is _cpu.cpython-27-x86_64-linux-gnu.so, for another)" in reason


@contextlib.contextmanager
def moved_away(file: Path):
    kept = file.rename(file.with_suffix(".kept"))
    try:
        yield
    finally:
        kept.rename(file)


@pytest.mark.slow
def test_without_a_compiler_the_package_is_built_aloud(sources, wheels, tmp_path):
    wheel, said = built("wheel", sources, tmp_path, EIDETIC_CPU_ONLY="1", CXX="/no/such/compiler")
    assert "eidetic_kernels._cpu COULD NOT BE BUILT" in said
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]


@pytest.mark.slow
def test_only_what_changed_is_compiled(sources, wheels, tmp_path):
    _, said = built("wheel", sources, tmp_path, EIDETIC_CPU_ONLY="1", MAX_JOBS="1")
    assert "no work to do" in said
    (folder,) = sources.glob("build/compiled-*")
    (sources / "csrc/bindings.h").touch()
    plan = subprocess.check_output([shutil.which("ninja", path=ninja_folder()), "-n"], cwd=folder, text=True)
    compiled = {Path(name).name for name in re.findall(r" -c (\S+)", plan)}
    assert compiled == {"cpu_bindings.cpp"}


def ninja_folder() -> str:
    import ninja

    return ninja.BIN_DIR


def test_this_checkout_holds_code_for_every_gpu(script):
    """What `make test` installed: CUDA sources compile for all targets."""
    installed = [one for one in distributions(name="eidetic-kernels") if is_this_checkout(one)]
    if not installed or not shutil.which("nvcc"):
        pytest.skip("needs nvcc and an editable install of this checkout, as make test makes it")
    assert installed[0].version == __version__ + cuda_mark()
    chosen = script.architectures("nvcc")
    code = gpu_code(ROOT / f"eidetic_kernels/_cuda{SUFFIX}")
    assert code == {f"sm_{one}" for one in chosen} | {f"compute_{chosen[-1]}"}


def is_this_checkout(installed: Distribution) -> bool:
    """Whether pip put it there as an editable install from here; the checkout's own egg-info says nothing of that."""
    return json.loads(installed.read_text("direct_url.json") or "{}").get("url") == ROOT.as_uri()


# What to build, by the environment


@pytest.fixture
def environment(monkeypatch, tmp_path):
    """No nvcc, no variable set."""
    for name in ("EIDETIC_CPU_ONLY", "EIDETIC_FORCE_CUDA", "EIDETIC_CUDA_ARCHS", "CUDA_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    return monkeypatch


@pytest.fixture
def nvcc(tmp_path) -> str:
    """One that knows some architectures and is on no PATH."""
    folder = tmp_path / "toolkit" / "bin"
    folder.mkdir(parents=True)
    program = folder / "nvcc"
    program.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        "--version) echo 'Cuda compilation tools, release 12.4, V12.4.131';;\n"
        "--list-gpu-code) printf 'sm_75\\nsm_80\\nsm_86\\nsm_89\\nsm_90\\nsm_90a\\n';;\n"
        "*) exit 1;;\n"
        "esac\n"
    )
    program.chmod(0o755)
    return str(program)


def test_cuda_is_built_where_there_is_nvcc(script, environment, nvcc, capsys):
    assert script.find_nvcc() is None
    assert "no CUDA kernels: there is no nvcc on the PATH" in capsys.readouterr().err
    environment.setenv("CUDA_HOME", str(Path(nvcc).parents[1]))
    assert script.find_nvcc() == nvcc
    assert script.cuda_version(nvcc) == (12, 4)
    environment.delenv("CUDA_HOME")
    environment.setenv("PATH", str(Path(nvcc).parent))
    assert script.find_nvcc() == nvcc
    environment.setenv("EIDETIC_CPU_ONLY", "1")
    assert script.find_nvcc() is None
    assert [module.name for module in script.extensions(None)] == ["eidetic_kernels._cpu"]
    assert [module.name for module in script.extensions(nvcc)] == ["eidetic_kernels._cpu", "eidetic_kernels._cuda"]


@pytest.mark.parametrize(
    "variables, message",
    [
        ({"EIDETIC_FORCE_CUDA": "1"}, "no nvcc on the PATH, and CUDA_HOME is not set. Install the CUDA toolkit"),
        ({"EIDETIC_FORCE_CUDA": "1", "CUDA_HOME": "/nowhere"}, "no nvcc in CUDA_HOME=/nowhere"),
        ({"EIDETIC_FORCE_CUDA": "1", "EIDETIC_CPU_ONLY": "1"}, "contradict each other"),
        ({"EIDETIC_CPU_ONLY": "yes"}, "EIDETIC_CPU_ONLY='yes'; expected 1, 0 or nothing"),
    ],
)
def test_what_cannot_be_built_says_what_to_do(script, environment, variables, message):
    for name, value in variables.items():
        environment.setenv(name, value)
    with pytest.raises(script.BuildError, match=re.escape(message)):
        script.find_nvcc()


def test_architectures_unknown_to_nvcc_are_dropped_aloud(script, environment, nvcc, capsys):
    assert script.architectures(nvcc) == [80, 86, 89, 90]
    assert "does not know sm_100, sm_120: no machine code for these" in capsys.readouterr().err


@pytest.mark.parametrize("asked", ["90;80", "8.0 9.0", "80,90;", "80;80;90"])
def test_architectures_can_be_chosen(script, environment, nvcc, asked, capsys):
    environment.setenv("EIDETIC_CUDA_ARCHS", asked)
    assert script.architectures(nvcc) == [80, 90]
    assert not capsys.readouterr().err


@pytest.mark.parametrize(
    "asked, message",
    [
        ("70;80", "asks for sm_70, which this nvcc does not know; it knows sm_75, sm_80, sm_86, sm_89, sm_90"),
        ("hopper", "has hopper; expected numbers such as 80;90 or 8.0;9.0"),
    ],
)
def test_wrong_architectures_are_refused(script, environment, nvcc, asked, message):
    environment.setenv("EIDETIC_CUDA_ARCHS", asked)
    with pytest.raises(script.BuildError, match=re.escape(message)):
        script.architectures(nvcc)
