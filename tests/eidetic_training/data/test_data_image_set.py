"""Image sets are checked when they are made; normalisation equals the textbook formula."""

import pytest
import torch

from eidetic_kernels.errors import InputError
from eidetic_training.data import ImageSet, Normalisation

IMAGES = torch.randint(0, 256, (6, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])


def test_a_good_set_says_what_it_is():
    images = ImageSet(IMAGES, LABELS, 3)
    assert (len(images), images.shape) == (6, (3, 4, 5))
    assert "6 x [3, 4, 5] uint8, 3 classes" in repr(images)
    assert images.to("cpu") is images


@pytest.mark.parametrize(
    ("images", "labels", "classes", "says"),
    [
        (IMAGES[:0], LABELS[:0], 3, "empty"),
        (IMAGES[0], LABELS[:3], 3, "N, C, H, W"),
        (IMAGES.long(), LABELS, 3, "dtype"),
        (IMAGES, LABELS[:5], 3, "6 images but 5 labels"),
        (IMAGES, LABELS.int(), 3, "torch.int64"),
        (IMAGES, LABELS.float(), 3, "torch.int64"),
        (IMAGES, torch.eye(6, dtype=torch.int64), 6, "argmax"),
        (IMAGES, LABELS, 2, "0..1"),
        (IMAGES, LABELS - 1, 3, "-1..1"),
        (IMAGES, LABELS, 0, "classes must be a whole number, 1 or more; got 0"),
        (IMAGES.numpy(), LABELS, 3, "torch.Tensor"),
        (IMAGES, LABELS.tolist(), 3, "torch.Tensor"),
        (IMAGES[:, :, :0], LABELS, 3, "size 0"),
    ],
)
def test_a_bad_set_is_refused(images, labels, classes, says):
    with pytest.raises(InputError, match=says):
        ImageSet(images, labels, classes)


def test_normalisation_of_bytes_is_that_of_their_shares_of_white():
    norm = Normalisation.of(IMAGES)
    planes = (IMAGES.double() / 255).transpose(0, 1).flatten(1)
    assert norm.mean == pytest.approx(planes.mean(1).tolist(), abs=1e-12)
    assert norm.std == pytest.approx(planes.std(1, correction=0).tolist(), abs=1e-12)
    x = norm(IMAGES)
    assert x.dtype == torch.float32
    assert torch.allclose(x.transpose(0, 1).flatten(1).mean(1), torch.zeros(3), atol=1e-5)
    assert torch.allclose(x.transpose(0, 1).flatten(1).std(1, correction=0), torch.ones(3), atol=1e-5)


def test_normalisation_of_floats_keeps_their_scale():
    images = IMAGES.float() * 3
    norm = Normalisation.of(images)
    assert norm.mean == pytest.approx(images.transpose(0, 1).flatten(1).mean(1).tolist(), rel=1e-6)
    assert abs(float(norm(images).mean())) < 1e-5


def test_a_constant_channel_is_centred_and_not_blown_up():
    images = torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)
    norm = Normalisation.of(images)
    assert norm.std == (1.0,)
    assert torch.equal(norm(images).abs() < 1e-6, torch.ones(4, 1, 2, 2, dtype=torch.bool))


def test_normalising_another_number_of_channels_is_refused():
    with pytest.raises(InputError, match="1 channels"):
        Normalisation.of(IMAGES)(IMAGES[:, :1])


def test_normalising_leaves_float_images_as_they_are():
    images = IMAGES.float()
    before = images.clone()
    Normalisation.of(images)(images)
    assert torch.equal(images, before)
