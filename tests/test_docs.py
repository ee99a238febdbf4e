"""Every page: its code runs, its commands and configurations are accepted, its links lead somewhere."""

import re
import shlex

import pages
import pytest

from eidetic_training import cli
from eidetic_training.experiments import config

WITH_PYTHON = [page for page in pages.DOCS if pages.blocks(page, "python")]
OPTIONAL = sorted(
    {(page, package) for page in WITH_PYTHON for block in pages.blocks(page) if block.language == "python"
     for package in pages.needs(block)}
)  # fmt: skip
COMMANDS = [(page, block.line) for page in pages.PAGES for block in pages.blocks(page, "bash")]
CONFIGURATIONS = [(page, block.line) for page in pages.PAGES for block in pages.blocks(page, "toml")]


def named(case):
    return pages.name(case) if hasattr(case, "relative_to") else str(case)


@pytest.fixture
def in_a_folder(tmp_path, monkeypatch):
    """Pages write files, and set torch's options: neither outlives the test."""
    pytest.importorskip("mlxtend", reason="the extra 'data' is not installed")
    monkeypatch.chdir(tmp_path)
    import torch._dynamo  # for seconds, and for a page that sets its options

    text = "".join(page.read_text(encoding="utf-8") for page in WITH_PYTHON)
    options = re.findall(r"torch\._dynamo\.config\.(\w+) = ", text)
    with torch._dynamo.config.patch({option: getattr(torch._dynamo.config, option) for option in options}):
        yield


@pytest.mark.parametrize("page", WITH_PYTHON, ids=named)
def test_a_page_s_python_runs(page, in_a_folder, capsys):
    pages.run(page)


@pytest.mark.filterwarnings("default")  # the packages' own
@pytest.mark.parametrize(("page", "package"), OPTIONAL, ids=named)
def test_python_that_needs_another_package_runs(page, package, in_a_folder, capsys):
    pytest.importorskip(package)
    net = pages.run(page, package)["net"]
    assert net.finished_tasks == 2 and net.certify().ok


@pytest.mark.parametrize("page", pages.PAGES, ids=named)
def test_every_block_is_of_a_kind_that_is_tested(page):
    assert {block.language for block in pages.blocks(page)} <= {"python", "bash", "toml", "text"}


@pytest.mark.parametrize(("page", "line"), COMMANDS, ids=named)
def test_commands_are_understood(page, line, capsys):
    block = next(block for block in pages.blocks(page, "bash") if block.line == line)
    for command in block.text.splitlines():
        words = shlex.split(command, comments=True)
        if words:
            assert accepted(words), command


def accepted(words):
    """Whether a command is one that the repository knows; `eidetic` refuses wrong arguments with SystemExit."""
    program, *arguments = words
    if program == "eidetic":
        parsed = cli._parser().parse_args(arguments)
        if getattr(parsed, "config", None) in config.built_in():
            config.load(parsed.config, parsed.overrides)
        return True
    if program == "make":
        return re.search(
            rf"^([\w-]+ )*{arguments[0]}( [\w-]+)*:",
            (pages.ROOT / "Makefile").read_text(encoding="utf-8"),
            re.MULTILINE,
        )
    if program == "python" and arguments[0] == "-m":
        return arguments[1] in ("build", "eidetic_kernels")
    if program == "pip":
        return arguments[0] in ("install", "wheel")
    return (pages.ROOT / (arguments[0] if program == "python" else program)).is_file()


@pytest.mark.parametrize(("page", "line"), CONFIGURATIONS, ids=named)
def test_configurations_are_accepted(page, line, tmp_path):
    block = next(block for block in pages.blocks(page, "toml") if block.line == line)
    path = tmp_path / "page.toml"
    path.write_text(block.text, encoding="utf-8")
    config.load(path)


@pytest.mark.parametrize("page", pages.PAGES, ids=named)
def test_links_lead_somewhere(page):
    for target, anchor in pages.links(page):
        assert target.exists(), target
        if anchor and target.suffix == ".md":
            assert anchor in pages.anchors(target), f"{target}#{anchor}"


def test_the_site_has_every_page():
    text = (pages.ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    listed = set(re.findall(r"^ +- [^:\n]+: (\S+\.md)$", text, re.MULTILINE))
    elsewhere = {"contributing.md", "changelog.md"}  # docs/_site/hooks.py brings them
    assert listed - elsewhere == {page.relative_to(pages.ROOT / "docs").as_posix() for page in pages.DOCS}


def test_the_reference_names_what_there_is():
    for page in pages.DOCS:
        text = page.read_text(encoding="utf-8")
        for entry in re.finditer(r"^::: (\S+)\n((?:    .*\n|\n(?=    ))*)", text, re.MULTILINE):
            found = pages.resolve(entry[1])
            inline = re.search(r"members: \[(.*)\]", entry[2])
            members = inline[1].split(", ") if inline else re.findall(r"^ +- (\w+)$", entry[2], re.MULTILINE)
            for member in members:
                assert hasattr(found, member), f"{entry[1]}.{member}"


def test_every_promise_is_defined_with_its_tests():
    text = (pages.ROOT / "docs" / "concepts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \*\*(P\d)\*\* \|(.*)$", text, re.MULTILINE)
    assert [number for number, _ in rows] == [f"P{number}" for number in range(1, 9)]
    for number, row in rows:
        assert re.search(r"\]\(\.\./tests/.*\.py\)", row), number
