"""What a run remembers of its network's inputs, and image files read for them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from eidetic_kernels.errors import InputError
from eidetic_training.runs.inputs import Inputs

INPUTS = Inputs((1, 4, 4), (0.5,), (0.25,), ((0, 1), (3, 2)))


def test_inputs_are_what_they_were_after_json():
    assert Inputs.from_json(json.loads(json.dumps(INPUTS.to_json()))) == INPUTS


@pytest.mark.parametrize(
    "change",
    [
        {"shape": [1, 4]},
        {"shape": [1, 4, -4]},
        {"shape": [1, 4, 4.5]},
        {"shape": None},
        {"mean": ["bright"]},
        {"std": 3},
        {"labels": [0, 1]},
        {"labels": [["cat"]]},
        {"labels": ["12"]},
        {"labels": [[0.5]]},
        {"labels": [[2**70]]},
        {"mean": []},
        {"mean": [0.5, 0.5], "std": [0.5, 0.5]},
        {"mean": ["0.5"]},
        {"mean": [float("nan")]},
        {"std": [0.0]},
    ],
)
def test_damaged_inputs_are_refused(change):
    with pytest.raises(InputError, match="inputs"):
        Inputs.from_json({**INPUTS.to_json(), **change})
    with pytest.raises(InputError, match="inputs"):
        Inputs.from_json({name: value for name, value in INPUTS.to_json().items() if name not in change})
    with pytest.raises(InputError, match="inputs"):
        Inputs.from_json([])


@pytest.mark.parametrize(("task", "index"), [(2, 0), (1, 2), (-1, 0), (0, -1)])
def test_a_label_that_is_not_on_record_is_named(task, index):
    assert [INPUTS.label(1, each) for each in range(2)] == [3, 2]
    with pytest.raises(InputError, match=f"inputs.json has no label of class {index} of task {task}"):
        INPUTS.label(task, index)


def test_an_image_of_16_bits_is_read_on_the_scale_of_8(tmp_path):
    ramp = np.linspace(0, 65535, 16).astype(np.uint16).reshape(4, 4)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    expected = (torch.arange(0, 256, 17).view(1, 4, 4) / 255 - 0.5) / 0.25
    torch.testing.assert_close(INPUTS.read_image(tmp_path / "ramp.png"), expected)


@pytest.mark.parametrize("shape", [(1, 4, 5), (2, 4, 4)])
def test_networks_that_take_no_pictures_read_none(tmp_path, shape):
    Image.new("L", (4, 4)).save(tmp_path / "grey.png")
    with pytest.raises(InputError, match="image files can be read"):
        Inputs(shape, (0.5,) * shape[0], (0.5,) * shape[0], ((0, 1),)).read_image(tmp_path / "grey.png")
