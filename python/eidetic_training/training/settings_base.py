"""What settings have in common: values checked when they are made, and names that are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import NoneType
from typing import Any, TypeVar

from eidetic_kernels.checking import nearest
from eidetic_kernels.errors import InputError

Kind = TypeVar("Kind", bound="Settings")

# By a field's annotation, as it is written: what its value may be. Fields with another annotation check themselves.
_TYPES: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "int | None": (int, NoneType),
    "int | float": (int, float),
    "float": (int, float),
    "bool": (bool,),
    "bool | str": (bool, str),
    "str": (str,),
}


@dataclass(frozen=True)
class Settings:
    """Abstract. A frozen dataclass whose fields all have defaults, made from keyword arguments or a configuration.

    Subclasses extend ``__post_init__``, which checks types, by the ranges of their values.
    """

    def __post_init__(self) -> None:
        for field in fields(self):
            types = _TYPES.get(str(field.type))
            if types is None:
                continue
            value = getattr(self, field.name)
            # True and False are ints to Python, and hardly ever meant as such.
            right = isinstance(value, types) and (bool in types or not isinstance(value, bool))
            require(right, f"{field.name} must be of type {field.type}", value)

    @classmethod
    def of_dict(cls: type[Kind], values: Mapping[str, Any]) -> Kind:
        """Settings from a configuration's table. Raises InputError for an unknown name, with those there are."""
        known = [field.name for field in fields(cls)]
        unknown = [name for name in values if name not in known]
        if unknown:
            named = ", ".join(f"{name!r}{nearest(name, known)}" for name in unknown)
            raise InputError(f"unknown setting {named}; there are: {', '.join(known)}.")
        return cls(**values)

    @classmethod
    def given(cls: type[Kind], settings: Kind | None, single: Mapping[str, Any]) -> Kind:
        """``settings`` as they are, or made of ``single`` ones by name. Raises InputError where both are given."""
        if settings is not None and single:
            raise InputError(f"give settings or single settings ({', '.join(single)}), not both.")
        return cls.of_dict(single) if settings is None else settings


def require(holds: bool, expected: str, given: object) -> None:
    """Raise InputError, with what was expected and what was given, unless ``holds``."""
    if not holds:
        raise InputError(f"{expected}; got {given!r}.")
