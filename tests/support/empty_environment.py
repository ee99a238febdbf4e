"""An environment that holds the package's dependencies and nothing else, made without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement

CORE = ("torch", "numpy", "safetensors", "tqdm")


class EmptyEnvironment:
    """Dependencies are links to what this Python has; the wheel is unpacked beside them."""

    def __init__(self, folder: Path, wheel: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
        self.folder = folder
        (self.site,) = folder.glob("lib/python*/site-packages")
        for name in _with_their_own(CORE):
            for file in distribution(name).files or ():
                top = file.parts[0]
                if top not in ("..", "__pycache__") and not (self.site / top).is_symlink():
                    (self.site / top).symlink_to(Path(distribution(name).locate_file(top)).resolve())
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-index", "--no-deps"]
        subprocess.run([*pip, "--target", self.site, wheel], check=True)

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess:
        """Python with `arguments`, far from the checkout; its output is kept as text."""
        ours = ("EIDETIC_", "PYTHON", "TRITON_")
        environment = {key: value for key, value in os.environ.items() if not key.startswith(ours)}
        return subprocess.run(
            [self.folder / "bin" / "python", *arguments],
            cwd=self.folder,
            env={**environment, "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
        )


def _with_their_own(names) -> set[str]:
    """`names` and whatever they require, extras left out."""
    found, queue = set(), list(names)
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            needs = map(Requirement, distribution(name).requires or ())
            queue += [need.name for need in needs if need.marker is None or need.marker.evaluate({"extra": ""})]
    return found
