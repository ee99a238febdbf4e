"""The staircase as a table: each picture is the paper's mask, a row of '1' (reads) and '0' a unit."""

import random

import pytest
from staircases import CASES, Case, random_case

from eidetic_kernels.errors import CapacityError, EideticError, InputError
from eidetic_kernels.layout import LIVE, Fixed, Segments, Source, Span, Stair, Staircase, positions, staircase, without


def picture(stairs):
    return ["".join("1" if read else "0" for read in row) for row in stairs.mask()]


def units(frozen=(), live=0, width=None):
    return Segments(sum(frozen) + live if width is None else width, live, tuple(frozen))


def layer(output, *sources, nested, task=None):
    return staircase(output, tuple(s if isinstance(s, Source) else Source(s) for s in sources), nested, task)


# ---- the paper's Figure 5: two tasks; the first kept two units of the first layer and one of the second


FIRST = units(frozen=(2,), live=3)  # units 0 and 1 are task 1's, the other three were recycled for task 2
SECOND = units(frozen=(1,), live=2)


def test_figure_5_neurons_of_the_second_task_read_frozen_ones_when_nested():
    assert picture(layer(SECOND, FIRST, nested=(True, True))) == [
        "11000",  # frozen: never reads a recycled neuron
        "11111",
        "11111",
    ]


def test_figure_5_neurons_of_the_second_task_do_not_read_frozen_ones_when_disjoint():
    assert picture(layer(SECOND, FIRST, nested=(True, False))) == [
        "11000",
        "00111",
        "00111",
    ]


def test_figure_5_recall_of_the_first_task_runs_its_own_units_only():
    assert picture(layer(SECOND, FIRST, nested=(True, True), task=0)) == ["11"]


def test_the_networks_input_belongs_to_no_task_and_everyone_reads_it():
    assert picture(layer(FIRST, Fixed(4), nested=(True, False))) == ["1111"] * 5
    assert picture(layer(FIRST, Fixed(4), nested=(True, False), task=0)) == ["1111"] * 2


# ---- live units alone


@pytest.mark.parametrize(
    ("nested", "columns", "trainable"),
    [(True, 12, (Span(2, 6), Span(7, 12))), (False, 9, (Span(0, 4), Span(4, 9)))],
    ids=["nested", "disjoint"],
)
def test_live_units_alone_read_the_same_end_to_end(nested, columns, trainable):
    """A flattened group of two columns a unit, and another beside it."""
    sources = Source(units(frozen=(1,), live=2), block=2), units(frozen=(1,), live=5)
    stairs = layer(units((3,), 4), *sources, nested=(True, nested), task=LIVE)
    assert stairs == Staircase((Stair(4, (Span(0, columns),), live=True),), columns, trainable)
    assert (stairs.rows, stairs.frozen_rows) == (4, 0)
    assert sources[0].columns(LIVE) == 4 and sources[1].present(LIVE) == 5


def test_live_units_alone_that_read_nothing_or_the_networks_input():
    assert layer(units((3,), 4), units((2,), 0), nested=(True, False), task=LIVE).stairs == (Stair(4, (), live=True),)
    assert layer(units((3,), 4), Fixed(6), nested=(True, False), task=LIVE).columns == 6
    assert Fixed(6).present(LIVE) == 6


def test_spans_within_and_without_others():
    draw = random.Random(0)
    for _ in range(300):
        inside = [draw.random() < 0.6 for _ in range(12)]
        removed = [draw.random() < 0.4 for _ in range(12)]
        spans, others = spans_of(inside), spans_of(removed)
        assert without(spans, others) == tuple(spans_of([a and not b for a, b in zip(inside, removed)]))
        both = [a and b for a, b in zip(inside, removed)]
        kept = [both[i] for i in range(12) if inside[i]]
        found = positions(spans, [Span(i, i + 1) for i in range(12) if both[i]])
        assert [i for a, b in found for i in range(a, b)] == [i for i, each in enumerate(kept) if each]


def spans_of(chosen):
    """The runs of True."""
    spans, edges = [], [i for i in range(13) if (i < 12 and chosen[i]) != (i > 0 and chosen[i - 1])]
    for start, stop in zip(edges[::2], edges[1::2]):
        spans.append(Span(start, stop))
    return spans


# ---- tables


TABLE = {
    "three tasks, nested": (
        units((1, 2), 1), (units((2, 1), 2),), (True, True, True),
        ["11000", "11100", "11100", "11111"],
    ),
    "three tasks, disjoint": (
        units((1, 2), 1), (units((2, 1), 2),), (False, False, False),
        ["11000", "00100", "00100", "00011"],
    ),
    "the second task chose to be disjoint, the third reads all": (
        units((1, 2), 1), (units((2, 1), 2),), (True, False, True),
        ["11000", "00100", "00100", "11111"],
    ),
    "a task without rows": (
        units((1, 0), 1), (units((2, 1), 2),), (True, True, True),
        ["11000", "11111"],
    ),
    "a task without columns": (
        units((1, 1), 1), (units((2, 0), 2),), (True, True, True),
        ["1100", "1100", "1111"],
    ),
    "a disjoint task without columns reads nothing": (
        units((1, 1), 1), (units((2, 0), 2),), (True, False, True),
        ["1100", "0000", "1111"],
    ),
    "no live rows": (
        units((1, 1), 0), (units((2, 1), 2),), (True, True, True),
        ["11000", "11100"],
    ),
    "no live columns": (
        units((1,), 1), (units((2,), 0),), (True, True),
        ["11", "11"],
    ),
    "no rows at all": (units((0,), 0), (units((2,), 1),), (True, True), []),
    "no columns at all": (units((1,), 1), (units((0,), 0),), (True, True), ["", ""]),
    "flattened channels are blocks of columns": (
        units((1,), 1), (Source(units((1,), 2), block=3),), (True, True),
        ["111000000", "111111111"],
    ),
    "flattened and disjoint": (
        units((1,), 1), (Source(units((1,), 2), block=3),), (True, False),
        ["111000000", "000111111"],
    ),
    "two groups side by side": (
        units((1,), 1), (units((1,), 2), units((2,), 1)), (True, True),
        ["100110", "111111"],
    ),
    "two groups side by side, disjoint": (
        units((1,), 1), (units((1,), 2), units((2,), 1)), (True, False),
        ["100110", "011001"],
    ),
    "the input beside a group": (
        units((1,), 1), (Fixed(2), units((1,), 1)), (True, False),
        ["1110", "1101"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLE)
def test_mask(name):
    output, sources, nested, expected = TABLE[name]
    stairs = layer(output, *sources, nested=nested)
    assert picture(stairs) == expected
    assert stairs.rows == len(expected)
    assert stairs.multiply_adds() == sum(row.count("1") for row in expected)


RECALLS = {
    "first of nested": ((True, True, True), 0, ["11"]),
    "second of nested": ((True, True, True), 1, ["110", "111", "111"]),
    "second of disjoint": ((False, False, False), 1, ["110", "001", "001"]),
}


@pytest.mark.parametrize("name", RECALLS)
def test_recall_is_a_prefix_without_live_rows_or_trainable_columns(name):
    nested, task, expected = RECALLS[name]
    stairs = layer(units((1, 2), 1), units((2, 1), 2), nested=nested, task=task)
    assert picture(stairs) == expected
    assert stairs.live is None and stairs.trainable == ()
    assert stairs.frozen == stairs.stairs


def test_recall_leaves_out_later_units_of_every_concatenated_source():
    sources = (units((1, 1), 2), Source(units((2, 1), 1), block=2), Fixed(1))
    assert picture(layer(units((1, 1), 1), *sources, nested=(True,) * 3, task=0)) == ["111111"]  # 1 + 2 * 2 + 1
    assert picture(layer(units((1, 1), 1), *sources, nested=(True,) * 3)) == [
        "1000" "11110000" "1",
        "1100" "11111100" "1",
        "1111" "11111111" "1",
    ]  # fmt: skip


# ---- spans


def test_spans_that_touch_are_one_span():
    stairs = layer(units((1,), 1), units((1,), 1), units((1,), 1), nested=(True, True))
    assert [stair.spans for stair in stairs.stairs] == [(Span(0, 1), Span(2, 3)), (Span(0, 4),)]


def test_spans_by_source_are_the_same_in_training_and_recall():
    """Sums in their order must not depend on which sources happen to touch."""
    generator = random.Random(7)
    for _ in range(200):
        cases = [random_case(generator, 6) for _ in range(3)]
        reads, tasks = [case.reads[0] for case in cases], len(cases[0].frozen)
        reads = [read for read in reads if isinstance(read, int) or len(read[0]) == tasks]
        case = Case(tuple(reads), cases[0].frozen, cases[0].live, cases[0].nested)
        for task in range(tasks):
            lengths = []
            for stairs in (case.staircase(None), case.staircase(task)):
                stair = stairs.stairs[task]
                apart = stair.spans_by_source
                covered = [column for span in apart for column in range(*span)]
                assert covered == [column for span in stair.spans for column in range(*span)]
                lengths.append([stop - start for start, stop in apart])
                assert Staircase.decode(stairs.encode()).stairs[task].spans_by_source == apart
            assert lengths[0] == lengths[1], case


def test_empty_spans_are_left_out():
    stairs = layer(units((1,), 1), units((0,), 2), units((1,), 0), nested=(True, False))
    assert [stair.spans for stair in stairs.stairs] == [(Span(2, 3),), (Span(0, 2),)]


def test_trainable_columns_are_the_live_units_of_every_source():
    sources = (Fixed(2), units((1,), 2), Source(units((1,), 2), block=3))
    stairs = layer(units((1,), 1), *sources, nested=(True, True))
    assert stairs.columns == 2 + 3 + 9
    assert stairs.trainable == (Span(3, 5), Span(8, 14))
    assert layer(units((1,), 1), *sources, nested=(True, True), task=0).trainable == ()


def test_nothing_is_trainable_where_nothing_is_live():
    assert layer(units((1,), 1), units((3,), 0), Fixed(2), nested=(True, True)).trainable == ()


def test_stairs_say_who_is_live():
    stairs = layer(units((1, 0), 2), units((2, 1), 2), nested=(True, True, True))
    assert stairs.stairs == (
        Stair(1, (Span(0, 2),)), Stair(0, (Span(0, 3),)), Stair(2, (Span(0, 5),), live=True)
    )  # fmt: skip
    assert stairs.live is stairs.stairs[2] and stairs.frozen == stairs.stairs[:2]
    assert (stairs.rows, stairs.frozen_rows, stairs.columns) == (3, 1, 5)
    assert stairs.stairs[0].columns == 2


def test_a_staircase_without_stairs():
    nothing = Staircase((), 0)
    assert (nothing.rows, nothing.live, nothing.mask(), nothing.multiply_adds()) == (0, None, (), 0)


def test_the_mask_follows_from_owners_alone_in_random_layers():
    generator = random.Random(5)
    cases = [*CASES.values(), *(random_case(generator, 6) for _ in range(300))]
    for case in cases:
        for task in (None, *range(case.live_task)):
            mask = case.staircase(task).mask()
            expected = case.mask(task)
            assert [list(row) for row in mask] == expected.tolist(), case
            assert case.staircase(task).columns == expected.shape[1], case


def test_resistance_no_frozen_row_reads_a_column_of_a_later_task():
    generator = random.Random(6)
    for _ in range(300):
        case = random_case(generator, 6)
        for row, owner in zip(case.staircase().mask(), case.row_owners().tolist()):
            for read, column_owner in zip(row, case.column_owners().tolist()):
                assert not (read and column_owner > owner), case


# ---- the life of a group


def test_a_groups_life():
    group = Segments(5)
    assert (group.live, group.free, group.tasks, group.total) == (5, 5, 0, 5)
    group.prune(2)
    assert (group.live, group.free, group.total) == (2, 5, 2)
    group.freeze()
    assert (group.frozen, group.live, group.free, group.tasks) == ((2,), 0, 3, 1)
    group.recycle(3)
    assert (group.live, group.free, group.total) == (3, 3, 5)
    group.prune(0)
    group.freeze()
    assert (group.frozen, group.free) == ((2, 0), 3)
    group.widen(7)
    group.recycle(5)
    assert (group.frozen, group.live, group.free) == ((2, 0), 5, 5)
    assert repr(group) == "Segments(width=7, frozen=[2, 0], live=5)"


def test_where_a_tasks_units_are():
    group = units((2, 0, 3), 4)
    assert [(group.start(t), group.stop(t), group.size(t)) for t in range(4)] == [
        (0, 2, 2), (2, 2, 0), (2, 5, 3), (5, 9, 4)
    ]  # fmt: skip
    assert [group.span(t, nested=True) for t in range(4)] == [(0, 2), (0, 2), (0, 5), (0, 9)]
    assert [group.span(t, nested=False) for t in range(4)] == [(0, 2), (2, 2), (2, 5), (5, 9)]
    assert [group.present(t) for t in (0, 1, 2, None)] == [2, 2, 5, 9]
    assert group.trainable() == (5, 9)


def test_a_saved_groups_sizes_come_back():
    group = Segments(9)
    group.assign((2, 3), 1)
    assert (group.frozen, group.live, group.free) == ((2, 3), 1, 4)
    with pytest.raises(CapacityError, match="10 units do not fit a group of width 9"):
        group.assign((5, 5), 0)
    assert group.frozen == (2, 3)


# ---- grains and alignment


def test_sizes_of_grains_are_whole():
    group = Segments(12, grain=3)
    assert repr(group) == "Segments(width=12, frozen=[], live=12, grain=3)"
    for change in (group.prune, group.widen, lambda n: group.assign((3, n), 0), lambda n: group.assign((), n)):
        with pytest.raises(InputError, match="must be a multiple of 3, since every 3 units .* got (4|13)"):
            change(13 if change == group.widen else 4)
        assert (group.width, group.frozen, group.live) == (12, (), 12)
    group.prune(6)
    group.freeze()
    with pytest.raises(InputError, match="live must be a multiple of 3"):
        group.recycle(5)
    assert (group.frozen, group.live) == ((6,), 0)
    for arguments in ((13,), (12, 4), (12, 3, (4,))):
        with pytest.raises(InputError, match="must be a multiple of 3"):
            Segments(*arguments, grain=3)
    with pytest.raises(InputError, match="grain must be a whole number of units, 1 or more; got 0"):
        Segments(4, grain=0)


def test_which_sizes_pruning_may_leave():
    assert Segments(4).ladder() == (4, 3, 2, 1, 0)
    assert Segments(4).ladder(3) == (4, 3) and Segments(4).ladder(4) == Segments(4).ladder(9) == (4,)
    assert Segments(12, grain=3).ladder() == (12, 9, 6, 3, 0)
    assert Segments(12, grain=3).ladder(4) == (12, 9, 6)
    ragged = Segments(13)
    ragged.align(4)
    assert ragged.ladder() == (13, 12, 8, 4, 0) and ragged.ladder(12) == (13, 12) and ragged.ladder(13) == (13,)
    ragged.align(14)
    assert ragged.ladder(10) == (13, 12, 11, 10), "a group narrower than the multiple is left alone"
    assert Segments(0).ladder() == (0,)
    both = Segments(24, grain=3)
    both.align(4)
    assert (both.step, both.ladder()) == (12, (24, 12, 0))


def test_which_sizes_a_new_segment_may_have():
    group = Segments(21)
    group.align(4)
    given = [(0, 0), (3, 0), (4, 4), (11, 8), (19, 16), (20, 20), (21, 21), (99, 21)]
    assert [group.fitting(count, 21) for count, _ in given] == [size for _, size in given]
    nearest = [(0, 0), (1, 0), (2, 4), (11, 12), (19, 20), (21, 21)]
    assert [group.fitting(count, 21, nearest=True) for count, _ in nearest] == [size for _, size in nearest]
    assert group.fitting(14, 15, nearest=True) == 15 and group.fitting(14, 15) == 12, "never more than is free"


def test_whole_grains():
    group = Segments(9, grain=3)
    assert group.keeps_whole([]) and group.keeps_whole([0, 1, 2, 6, 7, 8]) and group.keeps_whole(range(9))
    for keep in ([0], [1, 2, 3], [0, 1, 3], [0, 1, 2, 6], [0, 1, 2, 4, 5, 6]):
        assert not group.keeps_whole(keep), keep
    assert Segments(4).keeps_whole([1, 3])


# ---- errors


@pytest.mark.parametrize("width", [-1, 2.0, True, "3", None])
def test_sizes_are_whole_numbers(width):
    with pytest.raises(InputError, match=f"width must be a whole number of units, 0 or more; got {width!r}"):
        Segments(width)
    with pytest.raises(InputError, match="count must be a whole number"):
        Fixed(width)


def test_more_units_than_the_width():
    with pytest.raises(CapacityError, match="6 units were given to a group of width 5; widen it first"):
        Segments(5, 4, (2,))


def test_pruning_more_than_there_is():
    group = units((1,), 2)
    for kept in (-1, 3):
        with pytest.raises(InputError, match=f"cannot keep {kept} of 2 live units"):
            group.prune(kept)
    assert group.live == 2


def test_recycling_more_than_is_free():
    group = units((3,), 0, width=5)
    with pytest.raises(CapacityError, match="3 live units .* 3 of 5 are frozen and only 2 are free; ask for fewer or"):
        group.recycle(3)
    assert group.live == 0


def test_a_group_never_shrinks():
    with pytest.raises(CapacityError, match="a group of width 5 cannot become 4: units are never taken away"):
        Segments(5).widen(4)


def test_every_segment_needs_a_choice_of_reading():
    with pytest.raises(InputError, match="1 choices of reading were given for 2 segments"):
        layer(units((1,), 1), Fixed(2), nested=(True,))


def test_errors_have_one_base():
    assert issubclass(CapacityError, EideticError)
    assert issubclass(InputError, EideticError) and issubclass(InputError, ValueError)
