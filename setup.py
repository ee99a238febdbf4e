"""Builds the compiled kernels, ``eidetic_kernels._cpu`` and ``eidetic_kernels._cuda``; the rest is in pyproject.toml.

    pip install -e .                       in place; again after a change in csrc/: only what changed is compiled
    pip wheel --no-deps .                  a wheel for this Python; ``python -m build`` makes the sdist too
    python setup.py build_ext --inplace    the modules alone (needs setuptools, pybind11 and ninja; no network)

Sources are found by name: csrc/<kind>_bindings.cpp and everything in csrc/<kind>/, for the kinds cpu and cuda.

``_cpu`` is built on Linux where there is a C++ compiler. Without one, or when it fails, the package is installed
without it and torch runs in its place. ``_cuda`` is built where there is nvcc. Then it must build, and the version
names it: 0.1.0+cu130. A wheel without CUDA is plain 0.1.0, the name that a package index accepts. Where both lie side
by side, pip prefers the one with CUDA, which runs without a GPU as well.

Environment variables:

    EIDETIC_CPU_ONLY=1          leaves CUDA out, whatever is installed
    EIDETIC_FORCE_CUDA=1        without nvcc the build fails instead of leaving CUDA out
    EIDETIC_CUDA_ARCHS="80;90"  the GPUs to compile for; left out: those of ARCHITECTURES that this nvcc knows
    CUDA_HOME                   the CUDA toolkit to use; left out: the nvcc on the PATH
    CXX, MAX_JOBS               the C++ compiler; how many compilers run at once (left out: one a core)
"""

from __future__ import annotations

import filecmp
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.sdist import sdist
from setuptools.errors import CompileError

ROOT = Path(__file__).resolve().parent
PACKAGE = "eidetic_kernels"
VERSION = runpy.run_path(str(ROOT / PACKAGE / "version.py"))["__version__"]

# Compute capabilities with machine code of their own (A100, A10, L4, H100, B200, RTX 50). Newer ones compile the PTX.
ARCHITECTURES = (80, 86, 89, 90, 100, 120)


class BuildError(Exception):
    """What was asked for cannot be built; the message says what to do."""


def say(text: str) -> None:
    print(f"{PACKAGE}: {text}", file=sys.stderr, flush=True)


# What to build


def find_nvcc() -> str | None:
    """The CUDA compiler to use, or None: build without CUDA."""
    if _switch("EIDETIC_CPU_ONLY"):
        if _switch("EIDETIC_FORCE_CUDA"):
            raise BuildError("EIDETIC_CPU_ONLY=1 and EIDETIC_FORCE_CUDA=1 contradict each other; set one of them.")
        say("EIDETIC_CPU_ONLY=1: no CUDA kernels.")
        return None
    home = os.environ.get("CUDA_HOME")
    nvcc = shutil.which("nvcc", path=str(Path(home) / "bin") if home else None)
    if nvcc:
        return nvcc
    missing = f"no nvcc in CUDA_HOME={home}" if home else "no nvcc on the PATH, and CUDA_HOME is not set"
    if _switch("EIDETIC_FORCE_CUDA"):
        raise BuildError(f"EIDETIC_FORCE_CUDA=1, but there is {missing}. Install the CUDA toolkit or name its folder.")
    say(f"no CUDA kernels: there is {missing}.")
    return None


def cuda_version(nvcc: str) -> tuple[int, int]:
    """(13, 0) for CUDA 13.0."""
    text = _output(nvcc, "--version")
    found = re.search(r"release (\d+)\.(\d+)", text)
    if not found:
        raise BuildError(f"{nvcc} --version names no release:\n{text}")
    return int(found[1]), int(found[2])


def architectures(nvcc: str) -> list[int]:
    """Compute capabilities to compile for, 90 for 9.0, rising. What is asked for must be known to this nvcc."""
    known = {int(found) for found in re.findall(r"^sm_(\d+)$", _output(nvcc, "--list-gpu-code"), re.MULTILINE)}
    asked = re.findall(r"[^;,\s]+", os.environ.get("EIDETIC_CUDA_ARCHS", ""))
    if asked:
        wrong = [word for word in asked if not re.fullmatch(r"\d+|\d+\.\d", word)]
        if wrong:
            raise BuildError(f"EIDETIC_CUDA_ARCHS has {', '.join(wrong)}; expected numbers such as 80;90 or 8.0;9.0.")
        chosen = {int(word.replace(".", "")) for word in asked}
        if chosen - known:
            raise BuildError(
                f"EIDETIC_CUDA_ARCHS asks for {_names(chosen - known)}, which this nvcc does not know; "
                f"it knows {_names(known)}."
            )
    else:
        chosen = known.intersection(ARCHITECTURES)
        if not chosen:
            raise BuildError(f"this nvcc knows {_names(known)} and none of {_names(ARCHITECTURES)}; use a newer one.")
        if unknown := set(ARCHITECTURES) - known:
            say(f"this nvcc does not know {_names(unknown)}: no machine code for these.")
    return sorted(chosen)


def extensions(nvcc: str | None) -> list[Extension]:
    if not sys.platform.startswith("linux"):
        say(f"compiled kernels are built on Linux; on {sys.platform} torch runs in their place.")
        return []
    return [
        Extension(f"{PACKAGE}._{kind}", _sources(kind), optional=kind == "cpu")
        for kind in (["cpu", "cuda"] if nvcc else ["cpu"])
    ]


def _sources(kind: str) -> list[str]:
    patterns = (f"csrc/{kind}_bindings.cpp", f"csrc/{kind}/*.cpp", f"csrc/{kind}/*.cu")
    return sorted(path.relative_to(ROOT).as_posix() for pattern in patterns for path in ROOT.glob(pattern))


def _switch(name: str) -> bool:
    value = os.environ.get(name, "")
    if value not in ("", "0", "1"):
        raise BuildError(f"{name}={value!r}; expected 1, 0 or nothing.")
    return value == "1"


def _names(capabilities) -> str:
    return ", ".join(f"sm_{number}" for number in sorted(capabilities))


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise BuildError(f"{shlex.join(command)} failed: {getattr(error, 'stderr', '') or error}") from error


# How it is built


class Build:
    """A folder with a file for ninja, which knows what changed, headers and flags included, and keeps all cores busy.

    The folder stays, one for each Python, and serves whoever builds in this checkout: editable installs and wheels.
    """

    def __init__(self, modules: list[Extension], nvcc: str | None) -> None:
        self.folder = ROOT / "build" / f"compiled-{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.cores = int(os.environ.get("MAX_JOBS") or len(os.sched_getaffinity(0)))
        self.cuda_files = sum(source.endswith(".cu") for module in modules for source in module.sources)
        (self.folder / "build.ninja").write_text("\n".join([*self._rules(nvcc), *self._steps(modules), ""]))

    def make(self, *arguments: str) -> bool:
        """Runs ninja with ``arguments`` (names of modules' files); whether everything could be built."""
        try:
            from ninja import BIN_DIR
        except ImportError:
            BIN_DIR = None
        ninja = shutil.which("ninja", path=BIN_DIR) or shutil.which("ninja")
        if ninja is None:
            raise BuildError("there is no ninja; pip install ninja")
        # In the environment, not in the command: another number of cores is no reason to compile anew.
        flags = f"{os.environ.get('NVCC_APPEND_FLAGS', '')} --threads {max(1, self.cores // max(1, self.cuda_files))}"
        command = [ninja, "-C", str(self.folder), "-j", str(self.cores), *arguments]
        return subprocess.run(command, env={**os.environ, "NVCC_APPEND_FLAGS": flags}).returncode == 0

    def file(self, module: Extension) -> Path:
        return self.folder / (module.name.rpartition(".")[2] + sysconfig.get_config_var("EXT_SUFFIX"))

    def _rules(self, nvcc: str | None):
        compiler = shlex.split(os.environ.get("CXX", "")) or ["g++"]
        flags = ["-fPIC", "-fvisibility=hidden", "-Wall"]
        # Static libraries and their symbols stay inside: torch has a libstdc++ of its own in the same process.
        link = ["-Wl,--exclude-libs,ALL", "-Wl,-s"]
        if _has_static_library(compiler):
            link += ["-static-libstdc++", "-static-libgcc"]
        yield from self._rule("cpu", [*compiler, "-O3", "-fopenmp"], flags, link)
        if nvcc:
            chosen = architectures(nvcc)
            newest = chosen[-1]
            code = [f"-gencode=arch=compute_{one},code=sm_{one}" for one in chosen]
            code.append(f"-gencode=arch=compute_{newest},code=compute_{newest}")
            # nvcc hands these on to the C++ compiler. It names its own folders and links its runtime statically.
            flags, link = (["-Xcompiler=" + flag.replace(",", "\\,") for flag in some] for some in (flags, link))
            # The module can say what it holds, and decline on a GPU that runs none of it.
            flags.append(f"-DEIDETIC_CUDA_CODE={':'.join([f'sm_{one}' for one in chosen] + [f'compute_{newest}'])}")
            yield from self._rule("cuda", [nvcc, "-O3", "-cudart=static", *code], flags, link)

    def _rule(self, kind: str, command: list[str], flags: list[str], link: list[str]):
        includes = [f"-I{path}" for path in (ROOT / "csrc", self._pybind11(), sysconfig.get_path("include"))]
        yield f"rule {kind}_compile"
        yield f"  command = {_quoted(*command, '-std=c++17', *flags, *includes)} -MD -MF $out.d -c $in -o $out"
        yield "  depfile = $out.d"
        yield "  deps = gcc"
        yield f"rule {kind}_link"
        yield f"  command = {_quoted(*command, '-shared')} $in -o $out {_quoted(*link)}"

    def _steps(self, modules: list[Extension]):
        for module in modules:
            kind = module.name.rpartition("_")[2]
            objects = {f"{kind}/{Path(source).name}.o": source for source in module.sources}
            for made, source in objects.items():
                yield f"build {made}: {kind}_compile {_escaped(ROOT / source)}"
            yield f"build {_escaped(self.file(module).name)}: {kind}_link {' '.join(objects)}"

    def _pybind11(self) -> Path:
        """A copy of pybind11's headers that keeps its place and age: pip unpacks them anew for every build."""
        import pybind11

        given, kept = Path(pybind11.get_include()), self.folder / "include"
        for header in given.glob("pybind11/**/*.h"):
            copy = kept / header.relative_to(given)
            if not (copy.exists() and filecmp.cmp(header, copy, shallow=False)):
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(header, copy)
        return kept


def _has_static_library(compiler: list[str]) -> bool:
    try:
        return Path(_output(*compiler, "-print-file-name=libstdc++.a").strip()).is_absolute()
    except BuildError:
        return False


def _quoted(*words: str) -> str:
    return shlex.join(words).replace("$", "$$")


def _escaped(path) -> str:
    return re.sub(r"([$ :])", r"$\1", str(path))


class BuildExtensions(build_ext):
    def run(self) -> None:
        self._remove_older_modules()
        super().run()

    def build_extensions(self) -> None:
        build = Build(self.extensions, NVCC)
        complete = build.make("-k", "0")
        for module in self.extensions:
            if complete or build.make(build.file(module).name):
                self.mkpath(str(Path(self.get_ext_fullpath(module.name)).parent))
                self.copy_file(str(build.file(module)), self.get_ext_fullpath(module.name))
            elif module.optional:
                say(
                    f"{module.name} COULD NOT BE BUILT, see above. Installing without it; torch runs in its place. "
                    "It needs a C++17 compiler with OpenMP (g++, or what CXX names) and this Python's headers."
                )
            else:
                raise CompileError(f"{module.name} could not be built, see above. EIDETIC_CPU_ONLY=1 leaves it out.")

    def _remove_older_modules(self) -> None:
        """A build without CUDA must not ship, or leave in place, the module of a build with it."""
        for folder in [Path(self.build_lib) / PACKAGE, *([ROOT / PACKAGE] if self.inplace else [])]:
            for kind in ("_cpu", "_cuda"):
                (folder / f"{kind}{sysconfig.get_config_var('EXT_SUFFIX')}").unlink(missing_ok=True)


class SourceDistribution(sdist):
    """The sources know no CUDA version; what is built from them does."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.distribution.metadata.version = VERSION


if __name__ == "__main__":
    try:
        NVCC = find_nvcc()
        local = "+cu{}{}".format(*cuda_version(NVCC)) if NVCC else ""
        setup(
            version=VERSION + local,
            ext_modules=extensions(NVCC),
            cmdclass={"build_ext": BuildExtensions, "sdist": SourceDistribution},
        )
    except BuildError as error:
        raise SystemExit(f"{PACKAGE}: {error}") from None
