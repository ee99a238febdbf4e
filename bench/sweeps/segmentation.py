"""The decoders of segmentation-models-pytorch, classifying by the average of what they make of an image."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from .subject import CLASSES, Subject

PACKAGE = "segmentation-models-pytorch"

DECODERS = {
    "Unet": {},
    "UnetPlusPlus": {},
    "MAnet": {},
    "Linknet": {},
    "FPN": {},
    "PSPNet": {},
    "PAN": {},
    "DeepLabV3": {},
    "DeepLabV3Plus": {},
    "UPerNet": {},
    "Segformer": {},
    "DPT": {"encoder_name": "tu-vit_tiny_patch16_224", "dynamic_img_size": True},
}
# The smallest image that the decoder takes, where 64 pixels are too few.
PIXELS = {"PAN": 128}


class Averaged(nn.Module):
    """A segmentation model whose decoded features are averaged over the image, and classified."""

    def __init__(self, model: nn.Module):
        super().__init__()
        convolution = next(each for each in model.segmentation_head.modules() if isinstance(each, nn.Conv2d))
        model.segmentation_head = nn.Identity()
        self.model, self.head = model, nn.Linear(convolution.in_channels, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.model(x), 1).flatten(1))


def names() -> list[str]:
    return list(DECODERS)


def sample() -> list[str]:
    return ["FPN"]


def build(name: str) -> Subject:
    import segmentation_models_pytorch as smp

    options = {"encoder_name": "resnet18", **DECODERS[name]}
    model = getattr(smp, name)(encoder_weights=None, classes=CLASSES, **options)
    pixels = PIXELS.get(name, 64)
    return Subject(Averaged(model), (3, pixels, pixels), (3, pixels + 32, pixels + 32))
