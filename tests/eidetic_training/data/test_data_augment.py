"""Augmentation: every sample is a window of its own image, drawn independently, reproducibly."""

import pytest
import torch
import torch.nn.functional as F

from eidetic_kernels.errors import InputError
from eidetic_training.data import Augmentation


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def windows(image, pad):
    """Every crop of one padded image, and its mirror image."""
    height, width = image.shape[1:]
    padded = F.pad(image, (pad,) * 4)
    for y in range(2 * pad + 1):
        for x in range(2 * pad + 1):
            crop = padded[:, y : y + height, x : x + width]
            yield (y, x, False), crop
            yield (y, x, True), crop.flip(2)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_flip_and_crop_gives_a_window_of_the_same_sample(dtype):
    images = torch.randint(1, 256, (64, 3, 6, 7), generator=generator()).to(dtype)
    before = images.clone()
    out = Augmentation(flip=True, crop_padding=2)(images, generator(1))
    assert out.dtype == dtype and out.shape == images.shape
    assert torch.equal(images, before)
    seen = []
    for image, changed in zip(images, out):
        matches = [place for place, crop in windows(image, 2) if torch.equal(crop, changed)]
        assert len(matches) == 1
        seen += matches
    assert len(set(seen)) > 20, "samples must be drawn independently"
    assert {m for _, _, m in seen} == {True, False}
    assert {y for y, _, _ in seen} == set(range(5)) == {x for _, x, _ in seen}


def test_flip_alone_mirrors_about_half():
    images = torch.arange(4.0).repeat(400, 1, 1, 1)
    out = Augmentation(flip=True)(images, generator())
    mirrored = (out[:, 0, 0, 0] == 3).sum().item()
    assert 150 < mirrored < 250
    assert (out[:, 0, 0, 0] == 0).sum().item() == 400 - mirrored


def test_resized_crop_of_the_whole_image_is_the_image():
    images = torch.rand(8, 2, 16, 16, generator=generator())
    whole = Augmentation(resized_crop=(1.0, 1.0))
    # Aspect ratios differ from 1, so one side is full and the other is scaled: constant rows stay constant.
    ramp = torch.linspace(0, 1, 16).view(1, 1, 16, 1).expand(8, 1, 16, 16)
    out = whole(ramp, generator())
    assert torch.allclose(out, out[..., :1].expand_as(out), atol=1e-6)
    assert out.min() >= 0 and out.max() <= 1
    assert whole(images, generator()).shape == images.shape


def test_resized_crop_covers_the_share_of_the_area_asked_for():
    side = 64
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    images = torch.stack([y, x]).float().repeat(200, 1, 1, 1)
    out = Augmentation(resized_crop=(0.25, 0.25))(images, generator())
    assert out.dtype == torch.float32
    height = (out[:, 0].amax((1, 2)) - out[:, 0].amin((1, 2))) / side
    width = (out[:, 1].amax((1, 2)) - out[:, 1].amin((1, 2))) / side
    assert torch.allclose(height * width, torch.full((200,), 0.25), atol=0.03)
    ratio = width / height
    assert ratio.min() > 0.7 and ratio.max() < 1.4 and ratio.std() > 0.1
    assert out[:, 0, 0, 0].std() > 3, "places must differ"


def test_same_generator_same_result_another_another():
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8, generator=generator())
    for augment in (Augmentation(flip=True, crop_padding=2), Augmentation(flip=True, resized_crop=(0.3, 1))):
        assert torch.equal(augment(images, generator(5)), augment(images, generator(5)))
        assert not torch.equal(augment(images, generator(5)), augment(images, generator(6)))


def test_none_is_falsy_and_changes_nothing():
    images = torch.rand(2, 1, 3, 3)
    assert not Augmentation()
    assert Augmentation()(images) is images


@pytest.mark.parametrize(
    "arguments",
    [
        {"crop_padding": -1},
        {"resized_crop": (0, 1)},
        {"resized_crop": (0.9, 0.5)},
        {"resized_crop": (0.5, 1.1)},
        {"crop_padding": 1, "resized_crop": (0.5, 1)},
    ],
)
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(InputError):
        Augmentation(**arguments)


def test_features_cannot_be_augmented():
    with pytest.raises(InputError, match="B, C, H, W"):
        Augmentation(flip=True)(torch.rand(3, 4))
