"""How much memory there is, so that what cannot fit is refused before it is begun."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def bytes_of_memory() -> int | None:
    """This machine's bytes of memory, or its container's; None where the system does not say."""
    sizes = []
    with contextlib.suppress(AttributeError, ValueError, OSError):
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(ValueError, OSError):  # "max" where there is no limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return min(sizes, default=None)
