"""Which of torchvision's classification models convert, and pass every promise; a table in Markdown.

    python bench/sweep_torchvision.py [--only NAME ...] [--size 64] [--convert-only]

Each model is built with random weights and 8 classes, converted, and taken through tests/support/conversions.py: the
same bits in evaluation, the original untouched, two more tasks learned by AdamW with decay after pruning, all recalled
bit for bit with NaN in everything live. Sizes below the models' own keep it short; ``--step`` adds a training step
compared with the plain module's in float64.
"""

import argparse
import sys
import time
import warnings
from pathlib import Path

import torch

sys.path[:0] = [str(Path(__file__).parents[1] / "tests" / "support")]

from conversions import lived_in, load_torchvision, take_through  # noqa: E402

import eidetic_kernels as ek  # noqa: E402

# The smallest input that the model takes, where 64 pixels are too few; its training mode returns more than logits
# with auxiliary classifiers, which conversion leaves out.
SIZES = {"inception": 96, "alexnet": 96, "vit": 224, "maxvit": 224}
WITHOUT_AUXILIARIES = ("googlenet", "inception_v3")


def build(models, name):
    """The model with 8 classes, and the size of a small input for it."""
    options = {"aux_logits": False, "init_weights": False} if name in WITHOUT_AUXILIARIES else {}
    return lived_in(models.get_model(name, weights=None, num_classes=8, **options))


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--only", nargs="*", help="names of models; all classification models by default")
    arguments.add_argument("--size", type=int, default=64, help="pixels of the square input")
    arguments.add_argument("--convert-only", action="store_true", help="convert and compare outputs, learn nothing")
    arguments.add_argument("--step", action="store_true", help="compare a training step too, in float64")
    options = arguments.parse_args()
    torch.set_num_threads(1)
    models = load_torchvision()
    if models is None:
        sys.exit("torchvision is not installed: pip install --no-deps torchvision")
    names = options.only or models.list_models(module=models)
    converted = passed = 0
    print("| model | outcome | seconds to convert | why |\n|---|---|---|---|", flush=True)
    for name in names:
        torch.manual_seed(0)
        model, outcome, reason = build(models, name), "converts", ""
        x = torch.randn(4, 3, *[max(options.size, SIZES.get(name.split("_")[0], 0))] * 2)
        start = time.perf_counter()
        try:
            net = ek.convert(model, x[:1])
            seconds = f"{time.perf_counter() - start:.2f}"
            converted += 1
            with torch.no_grad():
                if not torch.equal(net.eval()(x), model.eval()(x)):
                    outcome, reason = "FAILS", "outputs are close, but not the same bits"
            if not options.convert_only and not reason:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    take_through(model.train(), x, double=options.step)
                outcome = "passes"
                passed += 1
        except ek.ConversionError as error:
            outcome, seconds, reason = "refused", "", str(error).splitlines()[0]
        except Exception as error:  # a sweep reports and goes on
            outcome, reason = "FAILS", f"{type(error).__name__}: {str(error).splitlines()[0]}"
            seconds = f"{time.perf_counter() - start:.2f}"
        print(f"| {name} | {outcome} | {seconds} | {reason} |", flush=True)
    print(f"\n{converted} of {len(names)} convert" + ("." if options.convert_only else f", {passed} pass everything."))


if __name__ == "__main__":
    main()
