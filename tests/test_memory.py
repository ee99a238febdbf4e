"""Digests and bytes of tensors, by their numbers alone."""

import struct

import torch

from eidetic_kernels.memory import bytes_of
from eidetic_kernels.tasks.record import digest


def test_digests_do_not_depend_on_how_a_tensor_lies_in_memory():
    wide = torch.arange(30.0).view(5, 6)
    for x in (
        wide,
        wide.t(),
        wide[:, ::2],
        wide[1:3, 2:4],
        wide[:0],
        wide[2, 3],
        wide[1:2, 1:2].as_strided((1, 1), (6, 6)),
    ):
        assert digest(x) == digest(torch.tensor(x.tolist()).view(x.shape))
        assert bytes_of(x) == b"".join(struct.pack("<f", number) for number in x.flatten().tolist())
