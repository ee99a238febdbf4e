"""Cases at random: each seed is one case, so a long run continues anywhere and a failure repeats alone.

    EIDETIC_FUZZ=20000 EIDETIC_FUZZ_SEED=40000 pytest -rP tests/fuzz/test_parquet.py

runs the cases 40000 to 59999; without the variables, as many as take a few seconds.
"""

import os
import random
import resource
import time
from collections import Counter

from eidetic_kernels.errors import EideticError

EDGES = (0, 1, 0x7F, 0x80, 0xFE, 0xFF)


def run_cases(name, usual, case, refused=EideticError, weight=1):
    """Run ``case(random.Random(seed))`` for each seed: it returns what came of it, or raises an error ``refused``.

    Print how many cases ended in which way. Fail with the seeds of those that raised anything else. A case of
    ``weight`` 50 takes as long as 50 others: EIDETIC_FUZZ runs a fiftieth of them.
    """
    cases = -(-int(os.environ["EIDETIC_FUZZ"]) // weight) if "EIDETIC_FUZZ" in os.environ else usual
    first = int(os.environ.get("EIDETIC_FUZZ_SEED", 0))
    ends, failures, slowest = Counter(), [], (0.0, first)

    for seed in range(first, first + cases):
        start = time.perf_counter()
        try:
            ends[case(random.Random(seed))] += 1
        except refused as error:
            ends[type(error).__name__] += 1
        except Exception as error:
            ends[f"other: {type(error).__name__}"] += 1
            failures.append(f"EIDETIC_FUZZ=1 EIDETIC_FUZZ_SEED={seed}: {type(error).__name__}: {error}"[:300])
        slowest = max(slowest, (time.perf_counter() - start, seed))

    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
    print(
        f"\n{name}: seeds {first} to {first + cases - 1}, {dict(sorted(ends.items()))}, slowest {slowest[0]:.2f} s "
        f"(seed {slowest[1]}), at most {memory} MiB"
    )
    assert not failures, f"{len(failures)} cases raised other errors:\n" + "\n".join(failures[:20])
    return ends


def damaged(data, others, rng, window=None):
    """``data`` with one to four random changes.

    others: files to splice pieces of. window: (start, stop), where changes begin; default: anywhere.
    """
    data = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start, stop = window or (0, len(data))
        at = rng.randrange(min(start, len(data) - 1), max(min(stop, len(data)), 1)) if data else 0
        length = rng.choice((1, 2, 4, 8, rng.randrange(1, 64), rng.randrange(1, max(2, len(data)))))

        change = rng.randrange(9)
        if not data:
            return b""
        if change <= 2:
            data[at] ^= 1 << rng.randrange(8)
        elif change == 3:
            data[at] = rng.choice(EDGES)
        elif change == 4:
            length = min(length, 8, len(data) - at)
            data[at : at + length] = bytes(rng.choice(EDGES) for _ in range(length))
        elif change == 5:
            del data[at : at + length]
        elif change == 6:
            data[at:at] = data[at : at + length] * rng.choice((1, 1, 3))
        elif change == 7:
            other = rng.choice(others)
            begin = rng.randrange(len(other))
            piece = other[begin : begin + length]
            data[at : at + rng.choice((0, len(piece)))] = piece
        else:
            del data[at:]
    return bytes(data)
