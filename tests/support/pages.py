"""The pages a reader sees: their code blocks, their links, and how to run them on little data."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from typing import NamedTuple

from eidetic_training.data import ImageSet, Source, load

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *DOCS]

# What a snippet may import and the tests do not install: such a block runs where the package is there.
OPTIONAL = ("accelerate", "lightning", "skorch", "transformers")


class Block(NamedTuple):
    """A fenced block of a page: its language, the page's line it begins at, and its text."""

    language: str
    line: int
    text: str


def name(page: Path) -> str:
    """A page's path in the repository, for a test's id."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, language: str | None = None) -> list[Block]:
    """All fenced blocks of a page, or those of one language."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in re.finditer(r"^```(\w*)[^\n]*\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        found.append(Block(match[1], text.count("\n", 0, match.start(2)) + 1, match[2]))
    return [block for block in found if language in (None, block.language)]


def needs(block: Block) -> set[str]:
    """The optional packages that a Python block imports."""
    modules = set()
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.Import):
            modules.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules.add(node.module.split(".")[0])
    return modules.intersection(OPTIONAL)


def run(page: Path, package: str | None = None) -> dict[str, object]:
    """Run a page's Python in order in one namespace, which is returned; paths are relative to the working directory.

    Blocks that need an optional package run for that ``package`` alone. Networks are narrower than printed, and the
    digits are fewer.
    """
    module = re.sub(r"\W", "_", name(page))  # of its own, since a saved network names its class
    names: dict[str, object] = {"__name__": module, "DIGITS": few_digits()}
    for block in blocks(page, "python"):
        if needs(block) <= {package}:
            text = block.text.replace("2000", "64").replace("400", "64").replace('"digits"', "DIGITS")
            # Lines are numbered as on the page, so that an error names the right one.
            code = compile("\n" * (block.line - 1) + text, str(page), "exec")
            exec(code, names)
    return names


def few_digits() -> Source:
    """Every sixth of the built-in digits: 667 images to train on, 167 to test."""
    return Source("digits", *(_every_sixth(load("digits", split)) for split in ("train", "test")))


def _every_sixth(images: ImageSet) -> ImageSet:
    return ImageSet(images.images[::6], images.labels[::6], images.classes)


def links(page: Path) -> list[tuple[Path, str]]:
    """Targets of a page's relative links: the file, and the anchor in it (or "")."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    found = []
    for target in targets:
        if not re.match(r"[a-z]+:", target):
            path, _, anchor = target.partition("#")
            found.append(((page.parent / path).resolve() if path else page, anchor))
    return found


def anchors(page: Path) -> set[str]:
    """The anchors that a page's headings have, on the site and where code is hosted."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def resolve(identifier: str) -> object:
    """What a dotted name stands for: a module, or an attribute of one."""
    parts = identifier.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise ModuleNotFoundError(identifier)
