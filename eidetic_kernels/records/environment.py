"""The environment that the bits of a network's answers depend on: machine, versions and torch's settings."""

from __future__ import annotations

import functools
import os
import platform
from contextlib import suppress
from typing import Any, cast

import torch
from torch import Tensor

from .. import backends
from ..tasks.record import Environment

# Variables by which libraries choose code and precision, recorded where they are set. MKL_CBWR=COMPATIBLE and
# ONEDNN_MAX_CPU_ISA=SSE41 were seen to change bits; libraries document the others. ATEN_CPU_CAPABILITY shows in the
# device.
_FPMATH = ("ONEDNN_DEFAULT_FPMATH_MODE", "DNNL_DEFAULT_FPMATH_MODE")
_OF_CPUS = (
    "MKL_CBWR",
    "MKL_ENABLE_INSTRUCTIONS",
    "MKL_DEBUG_CPU_TYPE",
    "MKL_DISABLE_FAST_MM",
    "MKL_NUM_STRIPES",
    "MKL_DYNAMIC",
    *(f"{prefix}_{name}" for prefix in ("ONEDNN", "DNNL") for name in ("MAX_CPU_ISA", "CPU_ISA_HINTS")),
    *_FPMATH,
    "TORCH_LINEAR_FLATTEN_3D",
    "OPENBLAS_CORETYPE",
)
_OF_GPUS = (
    "NVIDIA_TF32_OVERRIDE",
    "TORCH_BLAS_PREFER_CUBLASLT",
    "DISABLE_ADDMM_CUDA_LT",
    "CUBLASLT_WORKSPACE_SIZE",
    "TORCH_CUDNN_V8_API_DISABLED",
    "TORCH_CUDNN_USE_HEURISTIC_MODE_B",
)


def environment(like: Tensor) -> Environment:
    """The environment in which tensors like this one are computed. Settings are named as users set them."""
    device = like.device.type
    processor = torch.cuda.get_device_name(like.device) if like.is_cuda else torch.backends.cpu.get_cpu_capability()
    return {
        "device": f"{device} {processor}",
        "machine": platform.machine(),
        "dtype": str(like.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "backends": backends.choice(device),
        **(_cuda_settings() if like.is_cuda else _cpu_settings()),
        **{name: os.environ[name] for name in (_OF_GPUS if like.is_cuda else _OF_CPUS) if os.environ.get(name)},
    }


def differences(recorded: Environment, here: Environment) -> str:
    """What changed since, in words: "threads 4 (here 1)". Empty where nothing did."""
    keys = dict.fromkeys([*recorded, *here])
    changed = [key for key in keys if recorded.get(key) != here.get(key)]
    absent = {key: "unset" if key in (*_OF_CPUS, *_OF_GPUS) else "unknown" for key in changed}
    return ", ".join(f"{key} {recorded.get(key, absent[key])} (here {here.get(key, absent[key])})" for key in changed)


def reduced(environment: Environment) -> bool:
    """Whether float32 products may have run in TF32 or bfloat16, as far as was recorded."""
    settings = any(key.endswith("fp32_precision") and value != "ieee" for key, value in environment.items())
    fpmath = any(str(environment.get(name, "strict")).lower() != "strict" for name in _FPMATH)
    return settings or fpmath or environment.get("NVIDIA_TF32_OVERRIDE") == "1"


def _cuda_settings() -> Environment:
    """Settings of computations on a GPU, read by the names of torch 2.9 and later.

    The older names (allow_tf32, float32_matmul_precision) set these too, and raise when they are read after these
    were set.
    """
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return {
        "torch.backends.cuda.matmul.fp32_precision": _precision(matmul),
        "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction": (
            matmul.allow_bf16_reduced_precision_reduction
        ),
        "torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction": (
            matmul.allow_fp16_reduced_precision_reduction
        ),
        "torch.backends.cuda.matmul.allow_fp16_accumulation": matmul.allow_fp16_accumulation,
        "torch.backends.cudnn.conv.fp32_precision": _precision(cudnn.conv),
        "torch.backends.cudnn.enabled": cudnn.enabled,
        "torch.backends.cudnn.benchmark": cudnn.benchmark,
        "torch.backends.cudnn.deterministic": cudnn.deterministic,
        "torch.use_deterministic_algorithms": torch.are_deterministic_algorithms_enabled(),
        "CUBLAS_WORKSPACE_CONFIG": os.environ.get("CUBLAS_WORKSPACE_CONFIG", "unset"),
        "kinds of attention": _attention_kinds(),
    }


def _cpu_settings() -> Environment:
    """The processor, by which libraries choose kernels and block sizes, and settings of computations on it."""
    mkldnn = cast(Any, torch.backends.mkldnn)  # its attributes are made when torch is loaded; the stubs lack them
    return {
        "processor": _processor(),
        "torch.backends.mkldnn.enabled": bool(torch.backends.mkldnn.enabled),
        "kinds of attention": _attention_kinds(),
        "torch.backends.mkldnn.matmul.fp32_precision": _precision(mkldnn.matmul),
        "torch.backends.mkldnn.conv.fp32_precision": _precision(mkldnn.conv),
    }


@functools.cache
def _processor() -> str:
    """The processor's name, family, model and stepping, as far as the system tells."""
    found: dict[str, str] = {}
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    known = [found[name] for name in ("model name", "cpu family", "model", "stepping") if name in found]
    return " ".join(known) or platform.processor() or "unknown"


def _attention_kinds() -> str:
    """Which implementations of attention torch may choose from; the switches are those of a CPU, too."""
    switches = torch.backends.cuda
    kinds = {
        "flash": switches.flash_sdp_enabled(),
        "memory-efficient": switches.mem_efficient_sdp_enabled(),
        "math": switches.math_sdp_enabled(),
        "cudnn": switches.cudnn_sdp_enabled(),
    }
    return " ".join(kind for kind, enabled in kinds.items() if enabled)


def _precision(of: Any) -> str:
    """The precision of float32 products. "none" says that nobody asked for less than float32."""
    return "ieee" if of.fp32_precision == "none" else of.fp32_precision
