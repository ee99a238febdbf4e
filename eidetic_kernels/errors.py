"""Everything this package raises on purpose. Each message says what was given, what was expected, what to do."""


class EideticError(Exception):
    """Base class of every error raised by this package."""


class InputError(EideticError, ValueError):
    """Data or an argument has the wrong shape, dtype, range or size."""


class TaskError(EideticError):
    """A task index is out of order, unknown, or used in the wrong stage of its life."""


class BusyError(TaskError):
    """Another thread trains the network or changes its structure at this moment."""


class CapacityError(EideticError):
    """A layer has no units left for what was asked of it."""


class ConversionError(EideticError):
    """A network's unit groups could not be found; the message names the node."""


class ForgettingError(EideticError):
    """A finished task no longer gives the answers it gave when it was finished."""


class StaleOptimizerError(EideticError):
    """An optimizer holds parameters that the network no longer uses."""


class CheckpointError(EideticError):
    """A saved network is damaged, incomplete, or of another architecture."""


class RouterError(EideticError):
    """The task classifier is missing or does not know all finished tasks."""


class NonFiniteLossError(EideticError):
    """The training loss became NaN or infinite; the network was put back to its last good state."""


class BackendError(EideticError):
    """The backend that was asked for is unknown, is not here, or does not take these inputs."""
