"""Tiny configurations of Hugging Face's classifiers of images."""

from __future__ import annotations

from typing import Any

from .huggingface_models import Tiny


def images(kind: str, pixels: int = 32, **settings: Any) -> Tiny:
    return Tiny(kind, settings, (3, pixels, pixels), (3, 2 * pixels, 2 * pixels))


def plain(kind: str, **settings: Any) -> Tiny:
    """A vision transformer of patches that keep their number."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    return images(kind, 16, image_size=16, patch_size=4, **sizes, **settings)


SWIN = {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [2, 2], "num_heads": [2, 2], "window_size": 4}
FOUR = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]}

MODELS = {
    "vit": plain("ViT"),
    "deit": plain("DeiT"),
    "beit": plain("Beit", use_relative_position_bias=True),
    "dinov2": images(
        *("Dinov2", 16), image_size=16, patch_size=4, hidden_size=16, num_hidden_layers=2, num_attention_heads=2
    ),
    "swin": images("Swin", **SWIN),
    "swinv2": images("Swinv2", **SWIN),
    "convnext": images("ConvNext", **FOUR),
    "convnextv2": images("ConvNextV2", **FOUR),
    "mobilevit": images(
        "MobileViT",
        image_size=32,
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
        num_attention_heads=2,
    ),
    "mobilevitv2": images("MobileViTV2", image_size=64, pixels=64, width_multiplier=0.25),
    "resnet": images("ResNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], layer_type="bottleneck"),
    "regnet": images("RegNet", embedding_size=8, hidden_sizes=[8, 16], depths=[1, 2], groups_width=4),
    "segformer": images(
        "Segformer",
        num_encoder_blocks=2,
        depths=[1, 1],
        hidden_sizes=[8, 16],
        num_attention_heads=[1, 2],
        sr_ratios=[2, 1],
        patch_sizes=[3, 3],
        strides=[2, 2],
        mlp_ratios=[2, 2],
    ),
    "levit": images(
        "Levit",
        image_size=64,
        pixels=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 2, 2],
        depths=[1, 1, 1],
        key_dim=[4, 4, 4],
        down_ops=[["Subsample", 4, 4, 4, 2, 2], ["Subsample", 4, 6, 4, 2, 2]],
    ),
    "pvt": images("Pvt", image_size=32, num_attention_heads=[1, 2, 2, 4], **FOUR),
    "poolformer": images("PoolFormer", **FOUR),
    "cvt": images("Cvt", embed_dim=[8, 16, 16], num_heads=[1, 2, 2], depth=[1, 2, 3]),
    "focalnet": images("FocalNet", image_size=32, embed_dim=8, depths=[1, 1], hidden_sizes=[8, 16]),
    "efficientnet": images(
        "EfficientNet", image_size=32, width_coefficient=0.25, depth_coefficient=0.25, hidden_dim=320
    ),
    "mobilenet_v1": images("MobileNetV1", image_size=32, depth_multiplier=0.25),
    "mobilenet_v2": images("MobileNetV2", image_size=32, depth_multiplier=0.25),
}
