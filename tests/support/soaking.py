"""Random lives without end: each seed is a chunk of them, and what has passed is written down.

A run that was killed goes on with the chunks that are missing, as long as the code is the same.
"""

import hashlib
import json
import os
import time
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORD = ROOT / "build" / "soak.jsonl"
SOURCES = ("eidetic_kernels", "python/eidetic_training/training", "tests/support")


def seeds(chunk):
    """For EIDETIC_SOAK_STEPS events, ``chunk`` each, from EIDETIC_SOAK_SEED on; one seed without the variable."""
    first = int(os.environ.get("EIDETIC_SOAK_SEED", 0))
    steps = int(os.environ.get("EIDETIC_SOAK_STEPS", chunk))
    return range(first, first - -steps // chunk)


def passed(seed):
    """Whether the chunk has passed already with the code as it is."""
    if "EIDETIC_SOAK_STEPS" not in os.environ or not RECORD.exists():
        return False
    lines = map(json.loads, RECORD.read_text().splitlines())
    return any(line["seed"] == seed and line["code"] == code() and not line["failed"] for line in lines)


@contextmanager
def recorded(seed, events):
    """Write down what comes of a chunk: its ``events`` (a Counter), and what was raised, if anything was."""
    start, failed = time.perf_counter(), ""
    try:
        yield
    except Exception as error:
        failed = f"{type(error).__name__}: {error}"[:300]
        raise
    finally:
        if "EIDETIC_SOAK_STEPS" in os.environ:
            line = {
                "seed": seed,
                "code": code(),
                "events": sum(events.values()),
                "seconds": round(time.perf_counter() - start, 1),
                "failed": failed,
                "by_kind": dict(events.most_common()),
            }
            RECORD.parent.mkdir(exist_ok=True)
            with RECORD.open("a") as file:
                file.write(json.dumps(line) + "\n")


def code():
    """The first digits of SHA-256 over what is tested and what tests it."""
    files = [file for source in SOURCES for file in sorted((ROOT / source).rglob("*.py"))]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:12]


if __name__ == "__main__":
    lines = [json.loads(line) for line in RECORD.read_text().splitlines()]
    for each in dict.fromkeys(line["code"] for line in lines):
        chunks = [line for line in lines if line["code"] == each]
        events = sum(line["events"] for line in chunks)
        failures = [f"  seed {line['seed']}: {line['failed']}" for line in chunks if line["failed"]]
        print(f"code {each}: {len(chunks)} chunks, {events} events, {len(failures)} failures", *failures, sep="\n")
