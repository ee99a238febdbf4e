"""torchvision's classifiers, with inputs smaller than their own."""

from __future__ import annotations

from conversions import load_torchvision

from .subject import CLASSES, Subject

PACKAGE = "torchvision"

# The smallest image that the model takes, where 64 pixels are too few; by name, or by what the name begins with.
PIXELS = {"inception": 96, "alexnet": 96, "maxvit": 224, "vit_h_14": 56}
# Their training mode returns more than logits with auxiliary classifiers, which conversion leaves out.
WITHOUT_AUXILIARIES = ("googlenet", "inception_v3")
ONE_SIZE = ("vit", "maxvit")


def names() -> list[str]:
    models = load_torchvision()
    return models.list_models(module=models)


def sample() -> list[str]:
    return ["resnet18", "shufflenet_v2_x0_5"]


def build(name: str) -> Subject:
    pixels = PIXELS.get(name) or PIXELS.get(name.split("_")[0], 64)
    options = {"aux_logits": False, "init_weights": False} if name in WITHOUT_AUXILIARIES else {}
    if name.startswith("vit"):  # its position embeddings are those of one size
        options["image_size"] = pixels
    module = load_torchvision().get_model(name, weights=None, num_classes=CLASSES, **options)
    larger = None if name.startswith(ONE_SIZE) else (3, pixels + 32, pixels + 32)
    return Subject(module, (3, pixels, pixels), larger)
