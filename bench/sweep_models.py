"""Which well-known models convert and keep every promise; writes docs/models.md from a line of JSON for each model.

    python bench/sweep_models.py            models not yet in bench/results/models.jsonl, then the page
    python bench/sweep_models.py --fresh    all of them
    python bench/sweep_models.py --again    those that did not pass

Each model is built with random weights and 8 classes, converted, and taken through tests/support/conversions.py: the
same bits in evaluation, the original untouched, two tasks learned by AdamW with decay after pruning and a third begun,
both recalled bit for bit with NaN in everything live, both extracted and compared. Inputs smaller than the models' own
keep it short; ``--step`` also compares a training step with the plain module's, in float64. A line is written as soon
as a model is done, so an interrupted sweep continues. If timm is installed (pip install --no-deps timm), some of its
models are tried too.
"""

import argparse
import gc
import json
import re
import sys
import time
import warnings
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "python"), str(ROOT / "tests" / "support")]

from conversions import lived_in, load_torchvision, take_through  # noqa: E402
from machine import described  # noqa: E402

import eidetic_kernels as ek  # noqa: E402
from eidetic_training.runs import environment  # noqa: E402

RESULTS, PAGE = ROOT / "bench" / "results" / "models.jsonl", ROOT / "docs" / "models.md"
CLASSES, BATCH = 8, 4

# The smallest input that the model takes, where 64 pixels are too few.
PIXELS = {
    "inception": 96,
    "alexnet": 96,
    "maxvit": 224,
    "vit_h_14": 56,
    "mixer_s32_224": 224,
    "vit_tiny_patch16_224": 224,
}
# Their training mode returns more than logits with auxiliary classifiers, which conversion leaves out.
WITHOUT_AUXILIARIES = ("googlenet", "inception_v3")
# Of timm: convolutional families that torchvision lacks, in their smallest form.
TIMM = (
    "resnet10t",
    "resnet26d",
    "legacy_seresnet18",
    "resnetv2_50",
    "dla34",
    "dpn48b",
    "hrnet_w18_small",
    "mobilenetv3_small_050",
    "mobilenetv4_conv_small",
    "efficientnet_lite0",
    "ghostnet_050",
    "tf_efficientnetv2_b0",
    "repvgg_a0",
    "vovnet39a",
    "selecsls42",
    "darknet53",
    "cspresnet50",
    "lcnet_050",
    "convnext_atto",
    "convmixer_768_32",
    "mixer_s32_224",
    "vit_tiny_patch16_224",
)


def sources():
    """(source, name, how to build it) of every model at hand."""
    models = load_torchvision()
    if models is None:
        sys.exit("torchvision is not installed: pip install --no-deps torchvision")
    import torchvision

    def torchvision_model(name):
        options = {"aux_logits": False, "init_weights": False} if name in WITHOUT_AUXILIARIES else {}
        if name.startswith("vit"):  # its position embeddings are those of one size
            options["image_size"] = pixels_of(name)
        return models.get_model(name, weights=None, num_classes=CLASSES, **options)

    found = [
        (f"torchvision {torchvision.__version__}", name, torchvision_model)
        for name in models.list_models(module=models)
    ]
    try:
        import timm
    except ImportError:
        return found
    known = set(timm.list_models())
    return found + [
        (f"timm {timm.__version__}", name, lambda name: timm.create_model(name, num_classes=CLASSES))
        for name in TIMM
        if name in known
    ]


def pixels_of(name):
    return PIXELS.get(name) or PIXELS.get(name.split("_")[0], 64)


def examine(source, name, build, step):
    """One model's line."""
    torch.manual_seed(0)
    pixels = pixels_of(name)
    line = {"model": name, "source": source, "pixels": pixels, "converts": False, "outcome": "refused", "why": ""}
    model = lived_in(build(name))
    x = torch.randn(BATCH, 3, pixels, pixels)

    start = time.perf_counter()
    try:
        ek.convert(model, x[:1])
        line |= {"converts": True, "convert_seconds": round(time.perf_counter() - start, 2)}
        start = time.perf_counter()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            net = take_through(model.train(), x, double=step)
        line |= {"outcome": "passes", "groups": len(net.groups), "cycle_seconds": round(time.perf_counter() - start, 1)}
    except Exception as error:  # reported in the model's line; the sweep continues
        refused = isinstance(error, ek.ConversionError)
        kind = "" if refused else f"{type(error).__name__}: "
        why = kind + re.sub(r'(?<=File ")[^"]*site-packages/| at 0x[0-9a-f]+', "", (str(error) or "?").splitlines()[0])
        line |= {"outcome": "refused" if refused else "fails", "why": why}
    return line


def recorded():
    """The lines so far by (package, model); of several lines for a model, the last one counts."""
    if not RESULTS.exists():
        return {}
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()]
    return {(line["source"].split()[0], line["model"]): line for line in lines}


def page(lines, left):
    """docs/models.md; the models ``left`` are still to be taken."""
    text = [
        "# Models",
        "",
        "What `ek.convert` makes of models that people have; written by `python bench/sweep_models.py`. **Converts**: "
        "the network's outputs in evaluation are the model's, bit for bit. **Cycle**: pruned and trained by AdamW with "
        "weight decay, a second task learned the same way and a third begun, both finished tasks recalled bit for bit "
        "with NaN in everything live, and both extracted (`net.extract`) with the same logits. Random weights, "
        f"{CLASSES} classes, inputs of the size given; seconds for the conversion (which runs the model twice) and for "
        "the whole cycle.",
        "",
    ]
    for source in dict.fromkeys(line["source"] for line in lines):
        mine = [line for line in lines if line["source"] == source]
        converted, passed = (
            sum(map(bool, each))
            for each in ([line["converts"] for line in mine], [line["outcome"] == "passes" for line in mine])
        )
        text += [
            f"## {source}",
            "",
            f"{converted} of {len(mine)} convert, {passed} pass the whole cycle.",
            "",
            "| model | pixels | converts | cycle | convert s | cycle s | why not |",
            "|---|--:|---|---|--:|--:|---|",
        ]
        for line in mine:
            cells = [
                line["model"],
                line["pixels"],
                "yes" if line["converts"] else "no",
                line["outcome"] if line["converts"] else "",
                line.get("convert_seconds", ""),
                line.get("cycle_seconds", ""),
                line["why"].replace("|", "\\|"),
            ]
            text.append("| " + " | ".join(map(str, cells)) + " |")
        text.append("")

    commits = ", ".join(dict.fromkeys(str(line["commit"]) for line in lines))
    text += [f"Not run: {', '.join(left)}.", ""] if left else []
    text += [f"Measured on {described().split(', commit')[0]}; commits {commits}."]
    PAGE.write_text("\n".join(text) + "\n", encoding="utf-8")


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="*", help="names of models, to be taken (again) in this order")
    arguments.add_argument("--fresh", action="store_true", help="forget what is recorded")
    arguments.add_argument("--again", action="store_true", help="take those again that did not pass")
    arguments.add_argument("--step", action="store_true", help="compare a training step too, in float64")
    arguments.add_argument("--page-only", action="store_true", help="take no model, write the page")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    if options.fresh:
        RESULTS.unlink(missing_ok=True)

    facts = environment()  # before results are written, which would make the commit "-dirty"
    stamp = {"torch": facts["torch"], "commit": facts["commit"]}
    found, done, only = sources(), recorded(), options.only or []
    for source, name, build in sorted(found, key=lambda each: only.index(each[1]) if each[1] in only else 0):
        key = source.split()[0], name
        line = done.get(key)
        due = line is None or (options.again and line["outcome"] != "passes")
        if options.page_only or not (name in only if only else due):
            continue
        line = done[key] = examine(source, name, build, options.step) | stamp
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{name}: {line['outcome']} {line['why']}", flush=True)
        gc.collect()

    order = {(source.split()[0], name): number for number, (source, name, _) in enumerate(found)}
    lines = [done[key] for key in sorted(done, key=lambda key: order.get(key, len(order)))]
    RESULTS.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    page(lines, [name for source, name in order if (source, name) not in done])


if __name__ == "__main__":
    main()
