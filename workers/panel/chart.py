"""Charts as numbers: where each bar of a drawing stands. Pure; the template `chart.html` draws them as SVG."""

from collections.abc import Sequence

import msgspec

HEIGHT = 100.0  # of a drawing, in units of its own: the style sheet stretches it
STEP = 10.0  # from one column to the next
_GAP = 2.0  # between two columns
_LEAST = 1.2  # the height of what is not nothing, so that one bounce among a thousand deliveries is seen
LEVELS = 4  # of a heat map


class Point(msgspec.Struct, frozen=True, kw_only=True):
    """What one column stands for.

    Attributes:
        label: In words, such as `14:03`.
        values: One for each series.
    """

    label: str
    values: tuple[int, ...]


class Piece(msgspec.Struct, frozen=True, kw_only=True):
    """One series within a column."""

    series: str
    y: float
    height: float


class Column(msgspec.Struct, frozen=True, kw_only=True):
    """One column, with the words that it shows to a pointer."""

    x: float
    width: float
    pieces: tuple[Piece, ...]
    words: str


class Chart(msgspec.Struct, frozen=True, kw_only=True):
    """A drawing of stacked columns.

    Attributes:
        series: The names, which are those of colours in the style sheet, the lowest first.
        totals: Of each series.
        points: What is drawn, for the table beside the drawing.
        columns: Where it is drawn.
        ticks: What stands beside the grid lines, the topmost first.
        marks: What stands below the columns, from left to right.
        width: Of the drawing.
    """

    series: tuple[str, ...]
    totals: tuple[int, ...]
    points: tuple[Point, ...]
    columns: tuple[Column, ...]
    ticks: tuple[int, int, int]
    marks: tuple[str, ...]
    width: float

    @property
    def empty(self) -> bool:
        """Say whether there is nothing to see."""
        return not any(self.totals)


def stacked(series: Sequence[str], points: Sequence[Point], *, marks: int = 5) -> Chart:
    """Return a drawing with one column for each point.

    Args:
        series: One name for each value of a point.
        points: From left to right.
        marks: How many labels stand below, from the first to the last.
    """
    top = _top(max((sum(each.values) for each in points), default=0))
    return Chart(
        series=tuple(series),
        totals=tuple(sum(each.values[place] for each in points) for place in range(len(series))),
        points=tuple(points),
        columns=tuple(_column(place, series, point, top) for place, point in enumerate(points)),
        ticks=(top, top // 2, 0),
        marks=_marks([each.label for each in points], marks),
        width=max(1, len(points)) * STEP,
    )


def shares(values: Sequence[int], width: float = HEIGHT) -> list[tuple[float, float]]:
    """Return where each value stands in a bar that they fill together, as place and width."""
    whole, at, made = sum(values), 0.0, []
    for value in values:
        part = width * value / whole if whole else 0.0
        made.append((round(at, 2), round(part, 2)))
        at += part
    return made


def heat(value: int, most: int) -> int:
    """Return how warm a cell of a heat map is: 0 for nothing, else 1 to 4, in steps of the logarithm.

    Waiting mail of one domain is often a thousand times that of another; in even steps all others would look alike.
    """
    if value <= 0 or most <= 0:
        return 0
    return max(1, round(LEVELS * value.bit_length() / max(most, value).bit_length()))


def _column(place: int, series: Sequence[str], point: Point, top: int) -> Column:
    heights = [0.0 if value <= 0 else max(_LEAST, HEIGHT * value / top) for value in point.values]
    # What was made taller to be seen is taken from the tallest.
    if (over := sum(heights) - HEIGHT) > 0:
        heights[heights.index(max(heights))] -= over
    pieces, floor = [], HEIGHT
    for name, height in zip(series, heights, strict=True):
        if height > 0:
            floor = max(0.0, floor - height)
            pieces.append(Piece(series=name, y=round(floor, 2), height=round(height, 2)))
    words = ", ".join(f"{value:,} {name}" for name, value in zip(series, point.values, strict=True))
    return Column(x=place * STEP + _GAP / 2, width=STEP - _GAP, pieces=tuple(pieces), words=f"{point.label}: {words}")


def _top(most: int) -> int:
    """Return the least even number of one digit and zeros that is not below."""
    scale = 1
    while scale * 10 < most:
        scale *= 10
    return next(step * scale for step in (2, 4, 6, 8, 10) if step * scale >= most)


def _marks(labels: Sequence[str], count: int) -> tuple[str, ...]:
    if len(labels) <= count:
        return tuple(labels)
    return tuple(labels[round(place * (len(labels) - 1) / (count - 1))] for place in range(count))
