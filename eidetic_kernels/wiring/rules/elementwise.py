"""Operations that treat each unit by itself: of one tensor, and of several unit by unit."""

from __future__ import annotations

from typing import Any

from ..values import INPUT, Constant, Fixed, Units
from .step import Rule, Step


def passes(step: Step) -> Any:
    """Units stay apart and in order."""
    return step.first()


def casts(step: Step) -> Any:
    """The same; another tensor may be named for its dtype and device (``x.to(y)``, ``x.type_as(y)``)."""
    for argument in step.given:
        step.take(argument)
    return step.first()


def ties(step: Step) -> Any:
    """Operands are combined unit by unit: their groups become one. Numbers change nothing."""
    operands = [(value, each) for each in step.given if _is_tensor(value := step.values[each])]
    for _, argument in operands:
        step.take(argument)
    if not operands:
        return None
    units = [(value, argument) for value, argument in operands if not isinstance(value, Constant)]
    constants = [value for value, _ in operands if isinstance(value, Constant)]
    if not units:
        if len(constants) == 1:
            return constants[0]
        step.refuse("tensors of the network are combined with one another before the units that they belong to.")
    whole, argument = units[0]
    ranks = {len(step.shape(each) or ()) for _, each in units}
    if len(units) > 1 and isinstance(whole, Units) and whole.spatial and not whole.last and len(ranks) > 1:
        step.refuse("an image and a sequence are combined, which have their units in other places when aligned.")
    for value, _ in units[1:]:
        whole = step.builder.tie(whole, value, step.where())
    for constant in constants:
        whole = _held(step, constant, whole, argument)
    return whole


def _held(step: Step, constant: Constant, value: Any, argument: Any) -> Units:
    """``value``, that of ``argument``, after it was combined with a tensor of the network, which goes to its units."""
    if not isinstance(value, Units):
        step.refuse(
            f"{constant.path!r}, a tensor of the network, belongs to the units it is combined with; here are none."
        )
    rank = 2 if not value.spatial else len(step.shape(argument) or ())
    if value.flat or not (value.last or rank) or len(constant.shape) > (rank or len(constant.shape)):
        step.refuse(f"which dimension of {constant.path!r} {list(constant.shape)} holds units is not known here.")
    return step.builder.hold(constant, value, -1 if value.last else 1 - rank, step.where())


def _is_tensor(value: Any) -> bool:
    return value is INPUT or isinstance(value, (Units, Constant))


def refuses(reason: str) -> Rule:
    """A rule that refuses its operation, and says why."""

    def refuse(step: Step) -> Any:
        step.refuse(reason)

    return refuse


def drops_by_function(step: Step) -> Any:
    """``F.dropout``: nothing where it is switched off for good (p=0.0); ek.convert makes modules of the others."""
    (p,) = step.rest(("p", 0.5))
    if isinstance(p, (int, float)) and p == 0:
        return step.first()
    step.refuse(f"F.{step.operation} does not know which units are frozen: use a torch.nn.Dropout module.")


def unknown(step: Step) -> Any:
    """What has no rule may be done to the input and to numbers, not to units."""
    known = [step.of(each) for each in step.given]
    if all(value is None or value is INPUT or isinstance(value, Fixed) for value in known):
        return INPUT if INPUT in known else None
    step.refuse("it is not known to keep units apart.")
