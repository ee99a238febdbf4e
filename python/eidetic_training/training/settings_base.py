"""What settings have in common: values checked when they are made, and names that are known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeVar

from eidetic_kernels.checking import a_mapping, instance, known_names
from eidetic_kernels.errors import InputError

Kind = TypeVar("Kind", bound="Settings")


@dataclass(frozen=True)
class Settings:
    """Abstract. A frozen dataclass whose fields all have defaults, made from keyword arguments or a configuration.

    Subclasses check every field in ``__post_init__``.
    """

    def check(self, check: Callable[..., Any], *names: str, **limits: Any) -> None:
        """Let each field of ``names`` be what ``check(name, value, **limits)`` returns. It raises InputError."""
        for name in names:
            object.__setattr__(self, name, check(name, getattr(self, name), **limits))

    @classmethod
    def of_dict(cls: type[Kind], values: Mapping[str, Any]) -> Kind:
        """Settings from a configuration's table. Raises InputError for an unknown name, with those there are."""
        known_names(a_mapping("settings", values), [field.name for field in fields(cls)], "setting", cls.__name__)
        return cls(**values)

    @classmethod
    def given(cls: type[Kind], settings: Kind | None, single: Mapping[str, Any]) -> Kind:
        """``settings`` as they are, or made of ``single`` ones by name. Raises InputError where both are given."""
        if settings is None:
            return cls.of_dict(single)
        if single:
            raise InputError(f"give settings or single settings ({', '.join(single)}), not both.")
        return instance("settings", settings, cls, f"{cls.__name__}(...)")
