"""Figures on the pages are those of the results files: on ours, and on pages where one is wrong."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

RESULTS = """# A table

`python bench/a.py`, commit 1234567. Means over three seeds.

## MNIST

| row | accuracy | units | s |
|---|--:|---|---|
| backoff | 98.25 ± 0.04 | 50% | 1,969 |
| **backoff, longer** | 99.50 | 60% | 20 |

## CIFAR-10

| row | accuracy | units | s |
|---|--:|---|---|
| backoff | 86.13 | 50% | 30 |

With 86.1 %<!--a.md: CIFAR-10 > backoff > accuracy--> the whole of it ended at 77.7.
"""

MARKED = "98.25 % with 50 %<!--a.md: MNIST > backoff > accuracy + units-->"


@pytest.fixture
def check_claims(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module("check_claims")


@pytest.fixture
def repository(check_claims, tmp_path, monkeypatch):
    """Writes a page and the files it speaks of, and returns what is wrong with it."""
    paper = {"table3": {"ours": "98.31 ± 0.09", "cited": "98.42"}}
    monkeypatch.setattr(check_claims, "printed_by_the_paper", lambda: paper)
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    (results / "a.md").write_text(RESULTS, encoding="utf-8")
    (results / "a.json").write_text('{"even shares": {"used": 0.25, "learned": [0.95, 0.97]}}', encoding="utf-8")

    def problems(text: str, page: str = "docs/benchmarks.md") -> list[str]:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        (tmp_path / page).write_text(text, encoding="utf-8")
        return check_claims.problems(tmp_path)

    return problems


def test_every_figure_of_ours_is_what_its_marker_says(check_claims):
    assert check_claims.problems() == []


def test_our_pages_claim_figures_and_the_markers_are_read(check_claims):
    for page, least in (("README.md", 20), ("docs/benchmarks.md", 100)):
        found = list(check_claims.marked((ROOT / page).read_text(encoding="utf-8")))
        assert sum(len(each.figures) for each in found if each.marker) >= least, page


@pytest.mark.parametrize(
    "text",
    [
        MARKED,
        "98.3 % or 98.2 %<!--a.md: MNIST > backoff > accuracy-->",  # a half may be rounded either way
        "98 %, ±\n0.04<!--a.md: MNIST > backoff-->",  # over lines of a paragraph
        "86.1 %<!--a.md: CIFAR-10 > backoff--> and 99.5 %<!--a.md: backoff, longer-->",
        "77.7 %<!--a.md: the whole of it-->",
        "| **accuracy** | `units` |\n|---|---|\n| 98.25 % | 50 %<!--a.md: MNIST > backoff > @column--> |",
        "It took 1,969<!--a.md: MNIST > backoff > s--> s.",
        "25 % and 97.0 %<!--a.json: even shares-->, 0.95<!--a.json: even shares > learned > 0-->",
        "98.31 ± 0.09 and 98.42 %<!--paper: table3-->",
        "86.1 %<!--bench/results/a.md: CIFAR-10 > backoff-->",
        "Python 3.10<!--setting--> or newer",
        "2 x 2,000 units, 60,000 images, ResNet-18, version 0.1.0, in 3 of 4 tasks",
        "`99.9 %` [there](v1.5/page.md), https://example.org/1.5\n\n```bash\nlr=0.5\n```",
    ],
)
def test_what_is_right_is_left_alone(repository, text):
    assert repository(text + "\n") == []


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("98.26 % with 50 %<!--a.md: MNIST > backoff > accuracy + units-->", 1, "98.26 % is not in a.md: MNIST > "),
        ("98.25 % with 51 %<!--a.md: MNIST > backoff > accuracy + units-->", 1, "51 % is not in a.md: MNIST > "),
        ("98.24 %\nor 98.25 %<!--a.md: MNIST > backoff-->", 1, "(there: 98.25, 50, 0.04, 1969)"),
        ("98.1 %<!--a.md: MNIST > backoff > accuracy-->", 1, "98.1 % is not in a.md"),
        ("99 %<!--a.md: MNIST > backoff-->", 1, "99 % is not in a.md"),  # of another row
        ("It took 1,970<!--a.md: MNIST > backoff > s--> s.", 1, "1,970 is not in a.md"),
        (
            "| accuracy | units |\n|---|---|\n| 98.25 % | 98.25 %<!--a.md: MNIST > backoff > @column--> |",
            3,
            "98.25 % is not in a.md: MNIST > backoff > units (there: 50)",
        ),
        ("0.26<!--a.json: even shares > used-->", 1, "0.26 is not in a.json: even shares > used (there: 0.25)"),
        ("98.32 %<!--paper: table3-->", 1, "98.32 % is not in paper: table3 (there: 98.31, 98.42, 0.09)"),
        (f"{MARKED}\n\nIt has 12 %.", 3, "12 % has no marker"),
        (f"{MARKED} and 1.5 times", 1, "1.5 has no marker"),
        (f"- 1.5 times\n- {MARKED}", 1, "1.5 has no marker"),  # a marker speaks for its own item alone
        (f"| a |\n|---|\n| 1.5 |\n| {MARKED} |", 3, "1.5 has no marker"),
        ("1.5 times\n# Title\n" + MARKED, 1, "1.5 has no marker"),
        ("1.5 %<!--b.md: backoff-->", 1, "there is no file bench/results/b.md"),
        ("1.5 %<!--a.md: forward-->", 1, "a.md has no heading, row, line or column 'forward' there"),
        ("1.5 %<!--a.md: MNIST > backoff > epochs-->", 1, "a.md has no heading, row, line or column 'epochs' there"),
        ("1.5 %<!--a.md: MNIST > the whole of it-->", 1, "a.md has no heading, row, line or column 'the whole of it'"),
        ("1.5 %<!--a.md: Means over three seeds-->", 1, "1.5 % is not in a.md"),
        ("1.5 %<!--a.md: backoff > row-->", 1, "a.md has no number at backoff > row"),
        ("1.5 %<!--a.json: even shares > kept-->", 1, "there is no entry 'kept' of even shares > kept"),
        ("1.5 %<!--paper: table9-->", 1, "there is no entry 'table9' of table9"),
        ("1.5 %<!--a.md-->", 1, "<!--a.md--> is no marker"),
        (f"{MARKED}<!--a.md: backoff-->", 1, "<!--a.md: backoff--> stands behind no figure"),
        ("98.25 %\n<!--a.md: MNIST > backoff-->", 2, "a comment begins the line"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(repository, text, line, message):
    (problem,) = repository(text + "\n")
    assert problem.startswith(f"docs/benchmarks.md:{line}: ") and message in problem


def test_figures_need_markers_where_they_are_claimed_and_are_compared_everywhere(repository):
    page = "# Title\n\nA minute.\n\n## Install\n\ntorch 2.9\n\n## Results\n\n{}\n"
    assert repository(page.format(MARKED), "README.md") == []
    assert repository(page.format("98.3 %"), "README.md") == [
        "README.md:11: 98.3 % has no marker: <!--FILE: ROW > COLUMN-->"
    ]
    (problem,) = repository(page.format(MARKED).replace("A minute", "98.3 %"), "README.md")
    assert problem.startswith("README.md:3: 98.3 % has no marker")
    (problem,) = repository(page.format(MARKED).replace("2.9", "2.9<!--a.md: CIFAR-10 > backoff-->"), "README.md")
    assert problem.startswith("README.md:7: 2.9 is not in a.md")
    (problem,) = repository(page.format("").replace("## Results", "## Outcome"), "README.md")
    assert problem == 'README.md:1: there is no section "Results", where figures are claimed'


def test_results_files_are_pages_too(repository):
    (problem,) = repository(RESULTS.replace("86.1 %", "86.2 %"), "bench/results/a.md")
    assert problem.startswith(
        "bench/results/a.md:18: 86.2 % is not in a.md: CIFAR-10 > backoff > accuracy (there: 86.13)"
    )


def test_the_command_fails_when_a_figure_is_wrong(check_claims, monkeypatch, capsys):
    monkeypatch.setattr(check_claims, "problems", lambda: ["README.md:1: 98.58 % is not in table3.md"])
    with pytest.raises(SystemExit) as status:
        check_claims.main()
    assert status.value.code == 1 and "README.md:1: 98.58 %" in capsys.readouterr().out


def test_the_papers_numbers_are_those_of_the_reproductions(check_claims, monkeypatch):
    assert 98.31 in check_claims.numbers_at("paper", ["table3"], ROOT)
