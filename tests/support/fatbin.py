"""What GPU code a compiled module holds, read from the file itself: cuobjdump is not part of every toolkit."""

from __future__ import annotations

import struct
from pathlib import Path

_MAGIC = struct.pack("<IH", 0xBA55ED50, 1)
_KINDS = {1: "compute", 2: "sm"}


def gpu_code(module: Path) -> set[str]:
    """{"sm_80", "compute_80", ...}: machine code and PTX, by compute capability."""
    data, found, start = module.read_bytes(), set(), 0
    while (start := data.find(_MAGIC, start)) >= 0:
        header, size = struct.unpack_from("<HQ", data, start + 6)
        entry, end = start + header, start + header + size
        while entry < end:
            kind, entry_header, entry_size = struct.unpack_from("<H2xIQ", data, entry)
            (capability,) = struct.unpack_from("<I", data, entry + 28)
            found.add(f"{_KINDS[kind]}_{capability}")
            entry += entry_header + entry_size
        start = end
    return found
