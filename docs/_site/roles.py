"""An extension of griffe: what docstrings borrow from reStructuredText becomes Markdown."""

from __future__ import annotations

import re

import griffe

ROLE = re.compile(r":(?:class|meth|func|mod|data|attr):`~?\.?([^`]+)`")


class Roles(griffe.Extension):
    """``:class:`a.B` `` becomes `` `B` ``, and a literal block's ``::`` a colon."""

    def on_instance(self, *, obj: griffe.Object, **kwargs) -> None:
        if obj.docstring is not None:
            text = ROLE.sub(lambda match: f"`{_short(match[1])}`", obj.docstring.value)
            obj.docstring.value = re.sub(r"::$", ":", text, flags=re.MULTILINE)


def _short(name: str) -> str:
    """The last part of a dotted name, with its class where it is a method."""
    parts = name.lstrip(".").split(".")
    return ".".join(parts[-2:]) if len(parts) > 1 and parts[-2][:1].isupper() else parts[-1]
