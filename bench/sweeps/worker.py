"""Takes one model through its life, in a process of its own: python bench/sweeps/worker.py FAMILY NAME FILE."""

from __future__ import annotations

import sys
import traceback
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
# This folder must hide no package: bench/transformers.py has the name of one.
sys.path[:1] = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests" / "support")]
sys.path.append(str(ROOT / "bench"))

from sweeps.cycle import examine  # noqa: E402
from sweeps.families import FAMILIES, source  # noqa: E402
from sweeps.report import Report, first_line  # noqa: E402


def main(family: str, name: str, file: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.simplefilter("ignore")
    report = Report(Path(file), family=family, model=name, source=source(family))
    try:
        subject = FAMILIES[family].build(name)
    except Exception as error:  # what cannot be built cannot be converted
        report.line |= {"unbuilt": f"{type(error).__name__}: {first_line(error)}"}
        report.write()
        traceback.print_exc()
        return
    report.line |= {
        "input": list(subject.shape),
        "parameters": sum(each.numel() for each in subject.module.parameters()),
    }
    examine(subject, report)


if __name__ == "__main__":
    main(*sys.argv[1:])
