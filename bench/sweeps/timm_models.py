"""timm's models by the names in timm_names.txt, the smallest first, each with the smallest images that it takes."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from .subject import CLASSES, Subject, smallest, takes

PACKAGE = "timm"

NAMES = Path(__file__).with_name("timm_names.txt")
SIZES = (64, 96, 112, 128, 160, 192, 224, 240, 256, 288, 320, 384, 512, 768)
# Of models that divide images in windows: the smallest with several windows, so that none is left out.
PIXELS = {
    "swin_tiny_patch4_window7_224": (112,),
    "swinv2_cr_tiny_224": (224,),
    "swinv2_tiny_window8_256": (128,),
    "maxvit_tiny_tf_224": (224,),
    "maxvit_pico_rw_256": (256,),
    "maxxvit_rmlp_nano_rw_256": (256,),
}
# They return tokens, whatever the number of classes.
ENCODERS = ("gemma4_vit_167m_enc",)


class Averaged(nn.Module):
    """An encoder whose tokens are averaged, and classified."""

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.num_features, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def names() -> list[str]:
    return NAMES.read_text(encoding="utf-8").split()


def sample() -> list[str]:
    return ["test_resnet", "test_vit"]


def build(name: str) -> Subject:
    import timm

    sizes = PIXELS.get(name) or ((56, *SIZES) if "patch14" in name else SIZES)
    settings = timm.get_pretrained_cfg(name)
    module, size = _of_one_size(name, sizes) if settings is not None and settings.fixed_input_size else (None, None)
    if module is None:
        module = timm.create_model(name, num_classes=CLASSES)
        size = smallest(module, sizes)
    if size is None:
        raise ValueError(f"{name} takes no image of {sizes}")
    if name in ENCODERS:
        module = Averaged(module)
    return Subject(module, (3, size, size), (3, size + 32, size + 32))


def _of_one_size(name: str, sizes: tuple[int, ...]) -> tuple[nn.Module | None, int | None]:
    """A model made for the smallest image that it can be made for."""
    import timm

    for size in sizes:
        try:
            module = timm.create_model(name, num_classes=CLASSES, img_size=size)
        except TypeError:  # it is not asked for its size
            return None, None
        except Exception:
            continue
        if takes(module, (3, size, size)):
            return module, size
    return None, None
