"""Builds `_cuda` from its own sources with g++ and tests/csrc/cuda_on_cpu.h, and puts it in the place of the real one.

Built once for each state of the sources, into build/, by whichever test process comes first.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import sysconfig
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from eidetic_kernels.backends import cuda, extensions

ROOT = Path(__file__).parents[2]
SOURCES = [ROOT / "csrc/cuda_bindings.cpp", *sorted((ROOT / "csrc/cuda").glob("*.cu"))]
HEADERS = sorted([*(ROOT / "csrc").glob("**/*.h"), *(ROOT / "csrc").glob("**/*.cuh"), *(ROOT / "tests/csrc").glob("*")])
FORWARD, REVERSE, RANDOM = 0, 1, 2026  # orders of threads; a random order's number is its seed


class Settings(ctypes.Structure):
    """`Settings` of cuda_on_cpu.h: what the pretended device is and does."""

    _fields_ = [
        *[
            (name, ctypes.c_int32)
            for name in (
                "order",
                "processors",
                "devices",
                "device",
                "fail_runtime",
                "fail_launch",
                "launch_error",
                "launches",
                "launch_device",
            )
        ],
        ("launch_stream", ctypes.c_void_p),
    ]


def why_not() -> str | None:
    """Why the sources cannot be built for a CPU here; None: they can."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        return "cuda_on_cpu.h switches stacks in x86-64 assembly, for Linux"
    if shutil.which("g++") is None:
        return "there is no g++"
    if _cuda_headers() is None:
        return "there are no CUDA headers (cuda_runtime_api.h) beside nvcc or in CUDA_HOME"
    try:
        import pybind11  # noqa: F401
    except ImportError:
        return "pybind11 is not installed"
    return None


def build(sanitize: bool = False) -> Path:
    """The compiled module's file; ``sanitize``: the kernels report accesses out of bounds and undefined behaviour."""
    import pybind11

    includes = [ROOT / "tests/csrc", pybind11.get_include(), sysconfig.get_path("include")]
    compiler = ["g++", "-std=c++17", "-pthread", "-fPIC", "-fvisibility=hidden", "-DEIDETIC_CUDA_ON_CPU"]
    compiler += ["-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", *[f"-I{path}" for path in includes]]
    compiler += ["-isystem", str(_cuda_headers()), "-x", "c++", "-c"]
    sanitizers = ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined"] if sanitize else []
    objects = [
        _made([*compiler, *(["-O0"] if source.suffix == ".cpp" else ["-O1", *sanitizers]), str(source)], ".o")
        for source in SOURCES
    ]
    linker = ["g++", "-shared", "-pthread", *sanitizers]
    return _made([*linker, *map(str, objects)], sysconfig.get_config_var("EXT_SUFFIX"))


def _made(command: list[str], suffix: str) -> Path:
    """The file that ``command`` compiles; another one for every state of the sources."""
    key = hashlib.sha256("\0".join([*command, sys.version]).encode())
    for path in [*SOURCES, *HEADERS]:
        key.update(path.read_bytes())
    made = ROOT / "build/cuda-on-cpu" / f"{key.hexdigest()[:16]}{suffix}"
    made.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{made}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            unfinished = f"{made}.unfinished"
            done = subprocess.run([*command, "-o", unfinished], capture_output=True, text=True)
            assert done.returncode == 0, f"{' '.join(command)} failed:\n{done.stderr}"
            os.replace(unfinished, made)
    return made


def load(file: Path) -> tuple[ModuleType, Settings]:
    spec = importlib.util.spec_from_file_location("_cuda", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    library = ctypes.CDLL(str(file))
    library.cuda_on_cpu_settings.restype = ctypes.POINTER(Settings)
    return module, library.cuda_on_cpu_settings().contents


def fresh() -> Settings:
    """As in cuda_on_cpu.h."""
    return Settings(processors=4, devices=2, launch_device=-1)


def restore(settings: Settings, state: bytes) -> None:
    ctypes.memmove(ctypes.byref(settings), state, ctypes.sizeof(Settings))


@contextmanager
def in_place_of_cuda(module: ModuleType, device: int = 0, stream: int = 0):
    """Inside, :mod:`eidetic_kernels.backends.cuda` runs ``module`` on CPU tensors."""
    before = cuda.DEVICE, cuda._place, extensions.load, extensions.why_missing, extensions.why_no_code
    cuda.DEVICE, cuda._place = "cpu", lambda x: {"device": device, "stream": stream}
    extensions.load = lambda name: module if name == "_cuda" else before[2](name)
    extensions.why_missing = lambda name: None if name == "_cuda" else before[3](name)
    extensions.why_no_code = lambda device: None
    try:
        yield cuda
    finally:
        cuda.DEVICE, cuda._place, extensions.load, extensions.why_missing, extensions.why_no_code = before


def _cuda_headers() -> Path | None:
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    if nvcc is not None:
        dry = subprocess.run([nvcc, "--dryrun", "-x", "cu", "/dev/null"], capture_output=True, text=True).stderr
        homes += [line.partition("TOP=")[2].strip() for line in dry.splitlines() if "TOP=" in line]
    for home in filter(None, homes):
        include = Path(home) / "include"
        if (include / "cuda_runtime_api.h").is_file():
            return include
    return None
