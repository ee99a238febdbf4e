"""What importing the packages loads beside torch: next to nothing, so that it costs next to nothing beside torch."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# What may be loaded beside our own modules, the standard library's and what `import torch` loads; and what needs it.
ALLOWED = {"safetensors": "files.py writes it, records/checkpoint.py reads it"}
# The expensive ones, by name, although nothing may be loaded that is not allowed above.
NEVER = (
    "torch._dynamo",
    "torch._inductor",
    "onnx",
    "sympy",
    "triton",
    "matplotlib",
    "pyarrow",
    "optuna",
    "tensorboard",
)

PROGRAM = """
import json, sys
import torch
before = set(sys.modules)
import {package}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def printed_by(program: str) -> str:
    """What ``program`` prints in a fresh interpreter."""
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'python'}"}
    command = [sys.executable, "-c", program]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment).stdout


@pytest.mark.parametrize("package", ["eidetic_kernels", "eidetic_training"])
def test_an_import_loads_nothing_that_torch_leaves_out(package):
    modules = json.loads(printed_by(PROGRAM.format(package=package)))
    assert package in modules

    for name in NEVER:
        assert not [module for module in modules if module == name or module.startswith(f"{name}.")]

    # A module that the standard library keeps in C ("_struct") comes with the one in Python that uses it.
    tops = {module.partition(".")[0] for module in modules} - {"eidetic_kernels", "eidetic_training"}
    others = sorted(top for top in tops if top not in ALLOWED and top.lstrip("_") not in sys.stdlib_module_names)
    assert not others
    assert not [module for module in modules if module.startswith("torch.")]


def test_running_a_layer_loads_no_compiler():
    program = """
import sys
import torch, eidetic_kernels as ek
layer = ek.EideticLinear(4, 8, norm=ek.EideticBatchNorm1d(8, activation="relu"))
layer(torch.randn(6, 4)).sum().backward()
print("torch._dynamo" in sys.modules)
"""
    assert printed_by(program).strip() == "False"


def test_a_room_that_was_a_module_still_gives_its_names():
    from eidetic_training import runs

    names = {"RunFolder", "open_run", "environment", "Metric", "TaskScore", "CapacityEntry", "RouterScore", "PHASES"}
    assert names <= set(vars(runs))
