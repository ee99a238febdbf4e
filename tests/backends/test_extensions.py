"""Which compiled module is used, and what is said of one that is not."""

import importlib
import re
import sys
from types import SimpleNamespace

import pytest
import torch

from eidetic_kernels import __main__
from eidetic_kernels.backends import cuda as cuda_backend
from eidetic_kernels.backends import extensions


@pytest.fixture(autouse=True)
def fresh():
    forget()
    yield
    forget()


def forget():
    extensions._loaded.cache_clear()
    extensions.why_no_code.cache_clear()


@pytest.fixture
def present(monkeypatch):
    """Puts a module in the place of a compiled one, and torch beside it."""

    def put(name, module, torch_cuda="13.0"):
        monkeypatch.setitem(sys.modules, f"eidetic_kernels.{name}", module)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        return module

    return put


def cuda(built=13000, driver=13000, count=1, error="", code="sm_80:sm_86:sm_90:compute_90"):
    return SimpleNamespace(
        built_for=lambda: built, driver_supports=lambda: driver, device_count=lambda: (count, error), code=lambda: code
    )


@pytest.fixture
def gpus(monkeypatch):
    """Puts GPUs of these compute capabilities into the machine."""

    def put(*capabilities):
        monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")

    return put


@pytest.mark.parametrize("driver", [13000, 13020, 14000])
def test_a_module_that_can_run_is_given(present, driver):
    module = present("_cuda", cuda(driver=driver))
    assert extensions.load("_cuda") is module and extensions.why_missing("_cuda") is None


def test_the_cpu_module_needs_nothing(present):
    module = present("_cpu", SimpleNamespace())
    assert extensions.load("_cpu") is module and extensions.why_missing("_cpu") is None


@pytest.mark.parametrize(
    "module, torch_cuda, reason",
    [
        (cuda(driver=0), "13.0", "built for CUDA 13.0, and there is no NVIDIA driver"),
        (cuda(driver=12040), "13.0", "this machine's driver supports CUDA 12.4 at most; update the driver, or install"),
        (cuda(), None, "is built without CUDA and knows no GPU; install a build of it for CUDA"),
        (cuda(), "12.8", "runs CUDA 12.8; install builds of both for the same CUDA"),
        (cuda(built=12080), "13.0", "built for CUDA 12.8"),
        (cuda(count=0, error="check CUDA_VISIBLE_DEVICES."), "13.0", "finds no GPU: check CUDA_VISIBLE_DEVICES."),
    ],
)
def test_a_machine_that_cannot_run_cuda_is_told_why(present, module, torch_cuda, reason):
    present("_cuda", module, torch_cuda)
    assert extensions.load("_cuda") is None
    assert reason in extensions.why_missing("_cuda")


ITS_CODE = "it holds machine code for sm_80, sm_86, sm_90 and PTX for sm_90 and newer, and GPU 0 is sm_"


@pytest.mark.parametrize(
    "capability, driver, reason",
    [
        ((8, 0), 13000, None),
        ((8, 9), 13000, None),  # the machine code of sm_86
        ((9, 0), 13000, None),
        ((10, 0), 13000, None),  # the PTX
        ((10, 0), 13020, None),
        ((7, 5), 13000, ITS_CODE + "75; build it for that: EIDETIC_CUDA_ARCHS=75 pip install -v -e . in a checkout."),
    ],
)
def test_a_gpu_that_no_code_is_for_is_declined_and_told_what_to_build(present, gpus, capability, driver, reason):
    module = present("_cuda", cuda(driver=driver))
    gpus(capability)
    assert extensions.why_missing("_cuda") == reason
    assert extensions.load("_cuda") is (module if reason is None else None)


def test_older_minor_versions_run_no_newer_machine_code(present, gpus):
    present("_cuda", cuda(code="sm_86:sm_120:compute_120"))
    gpus((8, 0))
    assert "GPU 0 is sm_80; build it for that: EIDETIC_CUDA_ARCHS=80 pip" in extensions.why_missing("_cuda")
    extensions._loaded.cache_clear()
    gpus((12, 1))
    assert extensions.why_missing("_cuda") is None
    present("_cuda", cuda(code="sm_80:compute_90"))
    gpus((9, 0))
    extensions._loaded.cache_clear()
    assert extensions.why_missing("_cuda") is None


@pytest.mark.parametrize("capability, missing", [((9, 0), False), ((10, 0), True)])
def test_ptx_needs_a_driver_that_knows_its_cuda(present, gpus, capability, missing):
    """Machine code runs with an older driver of the same major version."""
    present("_cuda", cuda(built=13010, driver=13000, code="sm_90:compute_90"))
    gpus(capability)
    assert (extensions.why_missing("_cuda") is not None) is missing
    if missing:
        reason = "compile the PTX, of CUDA 13.1; it knows CUDA 13.0 at most. Update the driver, or build .*ARCHS=100 "
        assert re.search(reason, extensions.why_missing("_cuda"))


def test_of_two_gpus_the_one_without_code_is_declined(present, gpus, monkeypatch):
    module = present("_cuda", cuda(code="sm_90:compute_90"))
    gpus((8, 0), (9, 0))
    assert extensions.load("_cuda") is module
    assert "GPU 0 is sm_80" in extensions.why_no_code(0) and extensions.why_no_code(1) is None
    assert re.match("machine code for sm_90 and PTX .*\n *but it holds .* GPU 0 is sm_80", __main__._about("cuda"))
    asked = []
    monkeypatch.setattr(torch.cuda, "get_device_capability", asked.append)
    for index, reason in [(0, "GPU 0 is sm_80; build it for that"), (1, "float64")]:
        x = SimpleNamespace(device=torch.device("cuda", index), dtype=torch.float64)
        assert reason in cuda_backend.segmented_batch_norm_supports(x, *[None] * 5)
    assert not asked  # a device is looked at once


@pytest.fixture
def importing(monkeypatch):
    """Makes importing a module raise."""

    def fail(error):
        def import_module(name):
            raise error

        monkeypatch.setattr(extensions, "import_module", import_module)

    return fail


@pytest.mark.parametrize("name, remedy", [("_cpu", "with a C++ compiler"), ("_cuda", "where there is nvcc")])
def test_a_module_that_is_not_built_is_a_stated_fact(importing, name, remedy):
    importing(ModuleNotFoundError("no", name=f"eidetic_kernels.{name}"))
    assert extensions.load(name) is None
    assert "it is not built" in extensions.why_missing(name) and remedy in extensions.why_missing(name)


@pytest.mark.parametrize(
    "error",
    [
        ImportError("libgomp.so.1: cannot open shared object file"),
        ModuleNotFoundError("No module named 'other'", name="other"),
        RuntimeError("raised while it starts"),
    ],
)
def test_a_module_that_fails_to_load_is_warned_of_once(importing, error, recwarn):
    importing(error)
    with pytest.warns(RuntimeWarning, match="_cpu cannot be used, torch runs in its place") as warned:
        assert extensions.load("_cpu") is None
        assert extensions.load("_cpu") is None
        assert str(error) in extensions.why_missing("_cpu")
    assert len(warned) == 1
    assert warned[0].filename == __file__


def test_the_modules_of_this_machine_agree_with_what_is_said():
    for name in ("_cpu", "_cuda"):
        module = extensions.load(name)
        assert (module is None) is bool(extensions.why_missing(name))
        if module is not None:
            assert importlib.import_module(f"eidetic_kernels.{name}") is module
