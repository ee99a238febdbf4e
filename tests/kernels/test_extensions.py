"""Which compiled module is used, and what is said of one that is not."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import torch

from eidetic_kernels import extensions


@pytest.fixture(autouse=True)
def fresh():
    extensions._loaded.cache_clear()
    yield
    extensions._loaded.cache_clear()


@pytest.fixture
def present(monkeypatch):
    """Puts a module in the place of a compiled one, and torch beside it."""

    def put(name, module, torch_cuda="13.0"):
        monkeypatch.setitem(sys.modules, f"eidetic_kernels.{name}", module)
        monkeypatch.setattr(torch.version, "cuda", torch_cuda)
        return module

    return put


def cuda(built=13000, driver=13000, count=1, error=""):
    return SimpleNamespace(
        built_for=lambda: built, driver_supports=lambda: driver, device_count=lambda: (count, error)
    )


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
