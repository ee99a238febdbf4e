"""Names at the ends of lines: none overlaps another, and none is moved further than it must be."""

import itertools

import pytest

from eidetic_training.runs import style
from eidetic_training.runs.style import LineEnd


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], []),
        ([3.0], [3.0]),
        ([1.0, 5.0, 9.0], [1.0, 5.0, 9.0]),
        ([5.0, 5.0], [4.5, 5.5]),
        ([4.0, 4.5, 9.0], [3.75, 4.75, 9.0]),
        ([4.0, 4.9, 5.1], [3.6666667, 4.6666667, 5.6666667]),
        ([0.0, 0.0, 0.0], [0.0, 1.0, 2.0]),
        ([10.0, 10.0], [9.0, 10.0]),
    ],
)
def test_values_are_moved_apart_as_little_as_needed(values, expected):
    assert style._apart(values, gap=1.0, low=0.0, high=10.0) == pytest.approx(expected)


def test_names_do_not_overlap():
    Text = pytest.importorskip("matplotlib.text").Text
    figure, (axes,) = style.new_figure(6, 4)
    axes.set_ylim(0.4, 1.0)
    names = [f"method {i}" for i in range(11)]
    style.name_lines(axes, [LineEnd(name, 0.95 - 0.001 * i, style.MUTED) for i, name in enumerate(names)], height=3.4)
    figure.draw_without_rendering()
    texts = sorted(axes.texts, key=lambda text: text.get_position()[1])
    boxes = [Text.get_window_extent(text) for text in texts]  # without the lines that lead to them
    assert [text.get_text() for text in texts] == names[::-1]
    assert all(lower.y1 <= upper.y0 + 1 for lower, upper in itertools.pairwise(boxes))
