"""The header of a saved network, checked before anything is made of it: a file may come from anybody."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from ..errors import CheckpointError
from ..version import __version__

MOST_BYTES = 64 * 2**20  # of the header; a record of a task with 1,000 classes takes some 100 kB
MOST_UNITS = 2**40
DTYPES = ("float16", "bfloat16", "float32", "float64")

# A rule takes a value and says what was expected in its place; None: the value is right.
Rule = Callable[[Any, str], "str | None"]


def read_header(text: str, path: str, version: int) -> dict[str, Any]:
    """The header that ``text`` holds, in format ``version``.

    Raises CheckpointError, which names the field that is not what it must be.
    """
    if len(text) > MOST_BYTES:
        raise CheckpointError(f"{path}: its header has {len(text):,} bytes, and {MOST_BYTES:,} are allowed.")
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its header is no JSON ({type(error).__name__}: {error}).") from error
    if isinstance(header, dict) and header.get("format") != version:
        raise CheckpointError(
            f"{path} has format {_short(header.get('format'))}, written by version {_short(header.get('version'))}; "
            f"this version ({__version__}) reads format {version}."
        )
    problem = HEADER(header, "header")
    if problem is None:
        problem = _disagreement(header)
    if problem is not None:
        raise CheckpointError(f"{path} is not a network saved by this package, or is damaged: {problem}.")
    return header


# ---- kinds of values


def whole(least: int, most: int = MOST_UNITS) -> Rule:
    def rule(value: Any, name: str) -> str | None:
        right = isinstance(value, int) and not isinstance(value, bool) and least <= value <= most
        return None if right else f"{name} is {_short(value)}, a whole number from {least} to {most} was expected"

    return rule


def text(value: Any, name: str) -> str | None:
    return None if isinstance(value, str) else f"{name} is {_short(value)}, a text was expected"


def flag(value: Any, name: str) -> str | None:
    return None if isinstance(value, bool) else f"{name} is {_short(value)}, true or false was expected"


def anything(value: Any, name: str) -> str | None:
    return None


def setting(value: Any, name: str) -> str | None:
    return None if isinstance(value, (str, int)) else f"{name} is {_short(value)}, a text or number was expected"


def one_of(*known: str) -> Rule:
    def rule(value: Any, name: str) -> str | None:
        return None if value in known else f"{name} is {_short(value)}, one of {', '.join(known)} was expected"

    return rule


def optional(of: Rule) -> Rule:
    return lambda value, name: None if value is None else of(value, name)


def list_of(of: Rule, least: int = 0) -> Rule:
    def rule(value: Any, name: str) -> str | None:
        if not isinstance(value, list):
            return f"{name} is {_short(value)}, a list was expected"
        if len(value) < least:
            return f"{name} has {len(value)} entries, {least} or more were expected"
        return next((problem for i, each in enumerate(value) if (problem := of(each, f"{name}[{i}]"))), None)

    return rule


def map_of(of: Rule) -> Rule:
    def rule(value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name} is {_short(value)}, a mapping was expected"
        return next((problem for key, each in value.items() if (problem := of(each, f"{name}.{key}"))), None)

    return rule


def fields(**rules: Rule) -> Rule:
    """A mapping with these entries; a name that ends in _ may be missing, as in files of earlier versions."""

    def rule(value: Any, name: str) -> str | None:
        if not isinstance(value, dict):
            return f"{name} is {_short(value)}, a mapping was expected"
        for key, of in rules.items():
            field = key.rstrip("_")
            if field not in value:
                if key.endswith("_"):
                    continue
                return f"{name}.{field} is missing"
            if problem := of(value[field], f"{name}.{field}"):
                return problem
        return None

    return rule


def exactly(**rules: Rule) -> Rule:
    """As :func:`fields`, and no other entries."""
    of, known = fields(**rules), {key.rstrip("_") for key in rules}

    def rule(value: Any, name: str) -> str | None:
        if problem := of(value, name):
            return problem
        return next((f"{name} has an entry {_short(key)}, which is unknown" for key in value if key not in known), None)

    return rule


# See Router.fingerprint. Earlier versions wrote no settings.
_ROUTER_FINGERPRINT = re.compile(rf"({'|'.join(DTYPES)}) [0-9a-f]{{64}}( [0-9a-f]{{64}})?")


def router_fingerprint(value: Any, name: str) -> str | None:
    if isinstance(value, str) and _ROUTER_FINGERPRINT.fullmatch(value):
        return None
    return f"{name} is {_short(value)}, a dtype and SHA-256 in hexadecimal digits were expected"


RECORD = exactly(
    task=whole(0),
    units=map_of(whole(0)),
    fingerprints=map_of(text),
    logits=optional(text),
    environment=map_of(setting),
    shared_=optional(map_of(text)),
    values_=optional(text),
    probe_=optional(text),
)
HEADER = fields(
    **{"class": text},
    arguments=optional(fields(args=list_of(anything), kwargs=map_of(anything))),
    current_task=optional(whole(0)),
    head_forward_transfer=flag,
    input_shape=optional(list_of(whole(0))),
    dtype=one_of(*DTYPES),
    groups=list_of(
        fields(
            name=text,
            built_width=whole(0),
            width=whole(0),
            frozen=list_of(whole(0)),
            live=whole(0),
            multiple_=whole(1),
        )
    ),
    forward_transfer=map_of(list_of(flag)),
    heads=list_of(fields(classes=whole(1), forward_transfer=list_of(flag))),
    router_tasks=optional(whole(1)),
    router_layers_=flag,
    router_inputs_=flag,
    router_convolutions_=optional(list_of(whole(1, 2**20), least=2)),
    router_mirrored_=flag,
    router_classes_=optional(list_of(whole(1), least=1)),
    router_fingerprint_=optional(router_fingerprint),
    records=list_of(RECORD),
)


def _disagreement(header: dict[str, Any]) -> str | None:
    """Where two fields contradict each other; None: nowhere."""
    current, heads = header["current_task"], len(header["heads"])
    finished = heads if current is None else current
    if current is not None and heads not in (current, current + 1):
        return f"task {current} is in training and there are {heads} heads"

    for group in header["groups"]:
        if len(group["frozen"]) != finished:
            return f"{group['name']} has {len(group['frozen'])} segments of {finished} finished tasks"
        if sum(group["frozen"]) + group["live"] > group["width"]:
            return f"{group['name']} holds more units than its width, {group['width']}"
    for path, choices in header["forward_transfer"].items():
        if len(choices) != finished + 1:
            return f"forward_transfer.{path} has {len(choices)} entries for {finished} finished tasks and the live one"

    for task, head in enumerate(header["heads"]):
        least = task + 1
        if not least <= len(head["forward_transfer"]) <= least + 1:
            return f"heads[{task}].forward_transfer has {len(head['forward_transfer'])} entries"

    if [record["task"] for record in header["records"]] != list(range(len(header["records"]))):
        return "records are not those of tasks 0, 1, 2, ... in this order"
    if len(header["records"]) > finished:
        return f"there are {len(header['records'])} records for {finished} finished tasks"
    return None


def _short(value: Any) -> str:
    shown = repr(value) if not isinstance(value, (list, dict)) else f"a {type(value).__name__}"
    return shown if len(shown) <= 40 else shown[:37] + "..."
