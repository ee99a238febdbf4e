"""Cases that ``make test`` leaves out."""

import pytest


def slow(*values):
    """Cases of a parametrisation, or of a fixture, marked slow: ``parametrize("size", [3, *slow(5, 70)])``."""
    return [pytest.param(value, marks=pytest.mark.slow) for value in values]
