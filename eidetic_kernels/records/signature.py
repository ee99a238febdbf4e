"""Ed25519 signatures, by the package ``cryptography`` (the extra ``sign``)."""

from __future__ import annotations

import base64
import importlib
from pathlib import Path
from typing import Any

from ..checking import path, shown
from ..errors import InputError

ALGORITHM = "Ed25519"

# A key in a PEM file, or one of cryptography's key objects: Ed25519PrivateKey to sign, Ed25519PublicKey to verify.
Key = str | Path | Any

PRIVATE = "openssl genpkey -algorithm ed25519 -out private.pem"
PUBLIC = "openssl pkey -in private.pem -pubout -out public.pem"


def sign(content: bytes, key: Key) -> dict[str, str]:
    """The signature of ``content`` by a private key, and its public key, which says by whom. Raises InputError."""
    private = _private(key)
    return {
        "algorithm": ALGORITHM,
        "key": base64.b64encode(private.public_key().public_bytes_raw()).decode(),
        "value": base64.b64encode(private.sign(content)).decode(),
    }


def problem(content: bytes, signed: dict[str, str], key: Key) -> str | None:
    """Why ``signed`` is no signature of ``content`` by the private key that belongs to the public ``key``; None: it is.

    Raises InputError for a key that is none.
    """
    exceptions, _, _ = _cryptography()
    public = _public(key)
    given = base64.b64encode(public.public_bytes_raw()).decode()
    if signed["key"] != given:
        return f"it was signed by another key ({_short(signed['key'])}) than the one that was given ({_short(given)})"
    try:
        public.verify(base64.b64decode(signed["value"], validate=True), content)
    except (exceptions.InvalidSignature, ValueError):
        return "it was changed after it had been signed"
    return None


def _private(key: Key) -> Any:
    return _loaded(key, "Ed25519PrivateKey", "load_pem_private_key", "private", PRIVATE)


def _public(key: Key) -> Any:
    return _loaded(key, "Ed25519PublicKey", "load_pem_public_key", "public", PUBLIC)


def _loaded(key: Key, kind: str, loader: str, name: str, how: str) -> Any:
    """The key object that ``key`` is or that lies in its file. Raises InputError, which says how to make one."""
    exceptions, serialization, ed25519 = _cryptography()
    wanted = getattr(ed25519, kind)
    if not isinstance(key, (str, Path)):
        if isinstance(key, wanted):
            return key
        raise InputError(f"key must be a PEM file or a {kind} of cryptography; got {shown(key)}.")

    try:
        data = Path(path("key", key)).read_bytes()
    except OSError as error:
        raise InputError(f"the {name} key {key} cannot be read ({error}). Make one with: {how}") from error

    arguments = (None,) if name == "private" else ()
    try:
        loaded = getattr(serialization, loader)(data, *arguments)
    except TypeError as error:  # for a key in a passphrase
        raise InputError(
            f"the {name} key {key} is protected by a passphrase. Decrypt it on the way to the command, with "
            f"<(openssl pkey -in {key}) in place of the file; in Python load it with cryptography's {loader}(data, "
            "passphrase), and give the key itself."
        ) from error
    except (ValueError, exceptions.UnsupportedAlgorithm) as error:
        raise InputError(f"{key} holds no {name} key in PEM form. Make one with: {how}") from error

    if not isinstance(loaded, wanted):
        found = type(loaded).__name__.removeprefix("_")
        raise InputError(f"{key} holds a {found}, and an {kind} is needed: {how}")
    return loaded


def _cryptography() -> tuple[Any, Any, Any]:
    """The modules exceptions, serialization and ed25519 of ``cryptography``. Raises InputError without the package."""
    try:
        exceptions = importlib.import_module("cryptography.exceptions")
        serialization = importlib.import_module("cryptography.hazmat.primitives.serialization")
        ed25519 = importlib.import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    except ImportError as error:
        raise InputError(
            f"signatures need the package 'cryptography', which could not be imported ({error}). Install it with: "
            'pip install "eidetic-kernels[sign]"'
        ) from error
    return exceptions, serialization, ed25519


def _short(key: str) -> str:
    return key[:12] + "..."
