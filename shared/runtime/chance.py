"""The dice, as values that tests can choose."""

import random
from collections.abc import Callable

Dice = Callable[[], float]


def spread() -> float:
    """Return a number from -1 to 1, for the jitter of waits."""
    return random.uniform(-1, 1)


def new_id() -> str:
    """Return a new unique id: 32 hexadecimal digits. Unique, not secret."""
    return f"{random.getrandbits(128):032x}"
