"""Certificates in files of their own, signed where somebody else shall trust them.

The records in a saved network can be rewritten together with its weights, by whoever can write the file. A certificate
that is kept elsewhere, or is signed, cannot: what it says of finished tasks holds for ever, however many come later.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from ..errors import CheckpointError
from ..files import replacing
from ..tasks.record import TaskRecord
from ..version import __version__
from . import signature
from .header import MOST_BYTES, RECORD, exactly, fields, list_of, one_of, optional, router_fingerprint, text, whole

KIND, FORMAT = "eidetic certificate", 1


def moment(value: Any, name: str) -> str | None:
    """A time. Reports print it, so that nothing else may stand there."""
    with suppress(TypeError, ValueError):
        datetime.fromisoformat(value)
        if value.isprintable():
            return None
    return f"{name} is no date and time by ISO 8601, which was expected"


CONTENT = fields(
    kind=one_of(KIND),
    format=whole(1),
    version=text,
    made=moment,
    network=text,
    tasks=list_of(RECORD, least=1),
    router=optional(router_fingerprint),
    signature=optional(exactly(algorithm=one_of(signature.ALGORITHM), key=text, value=text)),
)


@dataclass(frozen=True)
class CertificateFile:
    """What a file says.

    Args:
        path: the file.
        made: when it was written, in UTC by ISO 8601.
        network: the class of the network.
        records: of the tasks that were finished by then, in order.
        router: the fingerprint of the router by then; None without one.
        signed: what is known of its signature, in words.
    """

    path: Path
    made: str
    network: str
    records: tuple[TaskRecord, ...]
    router: str | None
    signed: str


def write(
    path: str | Path, network: str, records: tuple[TaskRecord, ...], router: str | None, key: signature.Key | None
) -> None:
    """Write a certificate, signed by the private ``key`` if it is given. The old file stays until the new one is whole.

    Raises InputError for a key that is none, CheckpointError where the file cannot be written.
    """
    content: dict[str, Any] = {
        "kind": KIND,
        "format": FORMAT,
        "version": __version__,
        "made": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "network": network,
        "tasks": [asdict(record) for record in records],
        "router": router,
    }
    content["signature"] = None if key is None else signature.sign(_canonical(content), key)
    try:
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror}); what was there before is as it was."
        ) from error


def read(path: str | Path, key: signature.Key | None) -> CertificateFile:
    """The certificate in a file. With a public ``key``, it must be signed, and by that key.

    Raises CheckpointError for a file that is none, is damaged or cannot be trusted, InputError for a key that is none.
    """
    path = Path(path)
    content = _content(path)
    signed = content.pop("signature")
    if key is not None:
        if signed is None:
            raise CheckpointError(
                f"{path} is not signed, so that the key cannot say who wrote it. Ask for a signed one, or leave the "
                "key out if you know where the file comes from."
            )
        problem = signature.problem(_canonical(content), signed, key)
        if problem is not None:
            raise CheckpointError(f"{path} is not to be trusted: {problem}.")

    state = "not signed"
    if signed is not None:
        state = "signed by the key that was given" if key is not None else "signed, which was not checked: give the key"
    records = tuple(TaskRecord(**entry) for entry in content["tasks"])
    return CertificateFile(path, content["made"], content["network"], records, content["router"], state)


def _content(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > MOST_BYTES:
            raise CheckpointError(
                f"{path} has {path.stat().st_size:,} bytes; a certificate has {MOST_BYTES:,} at most."
            )
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_mapping)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as a certificate ({type(error).__name__}: {error}).") from error
    if isinstance(content, dict) and content.get("kind") == KIND and content.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} has format {content.get('format')!r}, and this version ({__version__}) reads format {FORMAT}."
        )
    problem = CONTENT(content, "certificate")
    if problem is None and [entry["task"] for entry in content["tasks"]] != list(range(len(content["tasks"]))):
        problem = "its tasks are not 0, 1, 2, ... in this order"
    if problem is not None:
        raise CheckpointError(f"{path} is not a certificate written by this package, or is damaged: {problem}.")
    return content


def _mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A mapping of JSON. Raises ValueError where a name stands twice: a reader may take one, a program the other."""
    mapping: dict[str, Any] = {}
    for name, value in pairs:
        if name in mapping:
            raise ValueError(f"{name!r} stands twice in one mapping")
        mapping[name] = value
    return mapping


def _canonical(content: dict[str, Any]) -> bytes:
    """The bytes that are signed: everything but the signature, as JSON in one form."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
