"""Optional packages, imported when first needed."""

from __future__ import annotations

import importlib
from types import ModuleType

from eidetic_kernels.errors import InputError


def need(module: str, purpose: str, extra: str = "data") -> ModuleType:
    """Import an optional package. Raises InputError, which names the extra to install, if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"{purpose} needs the package {module.split('.')[0]!r}, which could not be imported ({error}). "
            f'Install it with: pip install "eidetic-kernels[{extra}]"'
        ) from error
