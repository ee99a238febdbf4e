"""Which models convert and keep every promise: whole libraries of them, and small networks of our own.

    python bench/sweep_models.py                         all models that were not taken yet
    python bench/sweep_models.py --family topologies     one family; timm, torchvision, huggingface, smp, or all
    python bench/sweep_models.py --only resnet18 vit     these, again
    python bench/sweep_models.py --again                 those that did not pass, again
    python bench/sweep_models.py --sample                the topologies, and some small ones of what is installed
    python bench/sweep_models.py --page-only             the page alone

Each model is built with random weights and taken through the steps of sweeps/cycle.py, in a process of its own that may
take so many seconds and so much memory. A line of JSON is written as soon as a model is done, so that an interrupted
sweep continues; at the end the page is written. Families whose package is not installed are left out: pip install timm
transformers torchvision segmentation-models-pytorch. The exit status is 1 where anything is WRONG or fails, whatever is
refused.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).parents[1]
# This folder must hide no package: transformers.py has the name of one.
sys.path[:1] = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests" / "support")]
sys.path.append(str(ROOT / "bench"))

from machine import described  # noqa: E402
from sweeps import results  # noqa: E402
from sweeps.families import FAMILIES, chosen, source  # noqa: E402
from sweeps.page import page  # noqa: E402
from sweeps.processes import ENDING, Limits, examined  # noqa: E402

from eidetic_training.runs import environment  # noqa: E402


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", choices=["all", *FAMILIES], default="all")
    parser.add_argument("--only", nargs="*", help="names of models, to be taken (again) in this order")
    parser.add_argument("--again", action="store_true", help="take those again that did not pass")
    parser.add_argument("--sample", action="store_true", help="few models; for continuous integration")
    parser.add_argument("--page-only", action="store_true", help="take no model, write the page")
    parser.add_argument("--jobs", type=int, default=1, help="processes at once, of one thread each")
    parser.add_argument("--timeout", type=float, default=600, help="seconds that a model may take")
    parser.add_argument("--memory", type=float, default=10, help="GiB that a model may take")
    parser.add_argument("--out", type=Path, default=ROOT / "bench" / "results" / "models.jsonl", help="the lines")
    parser.add_argument("--page", type=Path, default=ROOT / "docs" / "models.md", help="the page")
    return parser.parse_args()


def due(options: argparse.Namespace, done: dict) -> list[tuple[str, str]]:
    """(family, model) of what is to be taken, in its order."""
    found = []
    for family in chosen(options.family):
        if source(family) is not None:
            names = FAMILIES[family].sample() if options.sample else FAMILIES[family].names()
            found += [(family, name) for name in names]
    if options.only:
        unknown = set(options.only) - {name for _, name in found}
        if unknown:
            sys.exit(f"no such models here: {', '.join(sorted(unknown))}")
        return sorted((key for key in found if key[1] in options.only), key=lambda key: options.only.index(key[1]))
    again = {key for key in done if options.again and results.outcome(done[key]) not in ("passes", "rounding")}
    return [key for key in found if key not in done or key in again]


def sweep(options: argparse.Namespace, keys: list[tuple[str, str]], file: Path) -> None:
    """Take the models ``keys``; their lines go to ``file``."""
    facts = environment()  # before results are written, which would make the commit "-dirty"
    stamp = {"torch": facts["torch"], "commit": facts["commit"]}
    limits = Limits(options.timeout, options.memory * 2**30)
    file.parent.mkdir(parents=True, exist_ok=True)
    pool = ThreadPoolExecutor(options.jobs)
    try:
        for done in as_completed([pool.submit(examined, *key, limits) for key in keys]):
            line = done.result()
            with open(file, "a", encoding="utf-8") as lines:
                lines.write(json.dumps(line | stamp) + "\n")
            why = line.get("unbuilt") or "; ".join(f"{step}: {text}" for step, text in line["why"].items())
            print(f"{line['family']} {line['model']}: {results.outcome(line)} {why}", flush=True)
    except BaseException:
        ENDING.set()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def write_page(options: argparse.Namespace, done: dict) -> None:
    """The page of all families that were taken, with a line of counts for each on the standard output."""
    families = []
    for family in FAMILIES:
        mine = {name: line for (of, name), line in done.items() if of == family}
        if mine:
            names = FAMILIES[family].names() if source(family) is not None else list(mine)
            ordered = [mine[name] for name in names if name in mine]
            families.append((ordered[0].get("source") or family, ordered, len(names)))
            print(f"{family}: {results.summary(ordered, len(names))}")
    commits = ", ".join(dict.fromkeys(str(line.get("commit")) for line in done.values()))
    command = "python bench/sweep_models.py" + (" --sample" if options.sample else "")
    options.page.write_text(
        page(families, command, f"{described().split(', commit')[0]}, commit {commits}"), encoding="utf-8"
    )


def main() -> None:
    options = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    if not options.page_only:
        sweep(options, due(options, results.recorded(options.out)), options.out)
    done = results.recorded(options.out)
    write_page(options, done)
    if any(results.outcome(line) in ("WRONG", "fails") for line in done.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
