"""When to come back, for those who were turned away: a place in a row, so that they do not come all at once."""

_FURTHEST = 300.0  # seconds: the latest time; there may be room much sooner than it looks
_SOONEST = 1.0  # seconds
_LEAST = 0.05  # seconds that a delivery is taken to last at least
_WEIGHT = 0.2  # of the last delivery in the average


class Row:
    """One row. Times are seconds of a clock that never goes back."""

    def __init__(self) -> None:
        """Begin with nothing known."""
        self._average = 0.0
        self._last = 0.0

    def ended(self, took: float) -> None:
        """Note how long a delivery took."""
        self._average = took if self._average == 0 else (1 - _WEIGHT) * self._average + _WEIGHT * took

    def lasts(self, age: float) -> float:
        """Return how long a delivery lasts: as the last ones did, or twice what the oldest has taken already.

        Args:
            age: Seconds since the oldest that runs has begun; 0 when none does.
        """
        return self._average if age <= self._average else 2 * age

    def place(self, now: float, age: float, part: float) -> float:
        """Give out the next place; return the seconds until then.

        Args:
            now: The time.
            age: As for `lasts`.
            part: Of all the room, what this delivery takes.
        """
        after = max(now, self._last) + max(self.lasts(age), _LEAST) * part
        self._last = min(after, now + _FURTHEST)
        return max(self._last - now, _SOONEST)
