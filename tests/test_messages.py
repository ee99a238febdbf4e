"""Errors and warnings end as sentences do, in both packages."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from eidetic_kernels import errors

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "eidetic_kernels").rglob("*.py"), *(ROOT / "python").rglob("*.py")])
CALLS = {name for name in vars(errors) if name.endswith("Error")} | {"NeedsClass", "refused", "warn", "require"}
ENDS = (".", "?", '"', '"]')  # a quotation mark ends what is to be copied: a command, a line of a configuration


def ends_of(message: ast.expr) -> Iterator[str]:
    """The texts that a message may end with; none for what is known only when it is raised."""
    if isinstance(message, ast.Constant):
        yield str(message.value)
    elif isinstance(message, ast.JoinedStr):
        yield from ends_of(message.values[-1])
    elif isinstance(message, ast.BinOp):
        yield from ends_of(message.right)
    elif isinstance(message, ast.IfExp):
        yield from ends_of(message.body)
        yield from ends_of(message.orelse)


def messages_in(source: str) -> Iterator[tuple[int, str]]:
    """The line of each call that raises or warns, with each text that its message may end with."""
    for node in ast.walk(ast.parse(source)):
        name = getattr(node.func, "id", getattr(node.func, "attr", None)) if isinstance(node, ast.Call) else None
        if name not in CALLS:
            continue
        hint = [keyword.value for keyword in node.keywords if keyword.arg == "hint"] or node.args[3:]
        for message in hint if name == "require" else node.args[:1]:
            yield from ((node.lineno, end) for end in ends_of(message))


def unfinished(source: str) -> list[tuple[int, str]]:
    """The messages that do not end as sentences."""
    return [(line, end) for line, end in messages_in(source) if end and not end.endswith(ENDS)]


def test_messages_end_as_sentences():
    found = {path: unfinished(path.read_text(encoding="utf-8")) for path in FILES}
    assert not {path.relative_to(ROOT).as_posix(): ends for path, ends in found.items() if ends}


def test_the_messages_are_found():
    assert sum(len(list(messages_in(path.read_text(encoding="utf-8")))) for path in FILES) > 200


@pytest.mark.parametrize(
    "call",
    [
        "InputError('no file here')",
        "InputError(f'{1} of {2} tasks')",
        "errors.TaskError('a' + ('b.' if x else 'c'))",
        "warnings.warn(f'{x} is slow', stacklevel=2)",
        "require(x, 'a number', x, 'give one')",
        "require(x, 'a number', x, hint='give one')",
    ],
)
def test_a_message_without_an_end_is_found(call):
    assert unfinished(call)
