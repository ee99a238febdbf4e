"""Operations that treat each unit by itself: of one tensor, and of several unit by unit."""

from __future__ import annotations

from typing import NoReturn

from torch import fx

from ...checking import instance
from ..values import INPUT, Constant, Input, Units, Unowned, Value
from .step import Rule, Step


def passes(step: Step) -> Value:
    """Units stay apart and in order."""
    return step.first()


def casts(step: Step) -> Value:
    """As ``passes``; another tensor may be named for its dtype and device (``x.to(y)``, ``x.type_as(y)``)."""
    for argument in step.given:
        step.take(argument)
    return step.first()


def ties(step: Step) -> Value:
    """Operands are combined unit by unit: their groups become one. Numbers change nothing."""
    tensors: list[tuple[Input | Units, fx.Node]] = []
    constants: list[Constant] = []
    for argument in step.given:
        value = step.values[argument]
        if isinstance(value, Constant):
            constants.append(value)
        elif isinstance(value, (Input, Units)):
            tensors.append((value, argument))
        else:
            continue
        step.take(argument)

    if not tensors:
        if not constants:
            return None
        if len(constants) == 1:
            return constants[0]
        step.refuse("tensors of the network are combined with one another before the units that they belong to.")

    whole, argument = tensors[0]
    ranks = {len(step.shape(each) or ()) for _, each in tensors}
    if len(tensors) > 1 and isinstance(whole, Units) and whole.spatial and not whole.last and len(ranks) > 1:
        step.refuse("an image and a sequence are combined, which have their units in other places when aligned.")
    for value, _ in tensors[1:]:
        whole = step.builder.tie(whole, value, step.where())
    for constant in constants:
        whole = _held(step, constant, whole, argument)
    return whole


def _held(step: Step, constant: Constant, value: Input | Units, argument: fx.Node) -> Units:
    """``value``, that of ``argument``, combined with a tensor of the network, which then belongs to its units."""
    if not isinstance(value, Units):
        step.refuse(
            f"{constant.path!r}, a tensor of the network, belongs to the units it is combined with; here are none."
        )
    rank = 2 if not value.spatial else len(step.shape(argument) or ())
    if value.flat or not (value.last or rank) or len(constant.shape) > (rank or len(constant.shape)):
        step.refuse(f"which dimension of {constant.path!r} {list(constant.shape)} holds units is not known here.")
    return step.builder.hold(constant, value, -1 if value.last else 1 - rank, step.where())


def refuses(reason: str) -> Rule:
    """A rule that refuses its operation, and says why. Raises InputError for a reason that is no text."""
    instance("reason", reason, str, "the words that say why")

    def refuse(step: Step) -> NoReturn:
        step.refuse(reason)

    return refuse


def drops_by_function(step: Step) -> Value:
    """``F.dropout``: nothing where it is switched off for good (p=0.0). ``ek.convert`` makes modules of the others."""
    (p,) = step.rest(("p", 0.5))
    if isinstance(p, (int, float)) and p == 0:
        return step.first()
    step.refuse(f"F.{step.operation} does not know which units are frozen: use a torch.nn.Dropout module.")


def unknown(step: Step) -> Value:
    """What has no rule may be done to the input and to numbers, but not to units."""
    known = [step.of(each) for each in step.given]
    if all(value is None or isinstance(value, (Input, Unowned)) for value in known):
        return INPUT if INPUT in known else None
    step.refuse("it is not known to keep units apart.")
