"""Charts as numbers."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.panel.chart import HEIGHT, LEVELS, Point, heat, shares, stacked

SERIES = ("delivered", "deferred", "given up")
POINTS = st.lists(st.tuples(*[st.integers(0, 10**9)] * 3).map(lambda values: Point(label="x", values=values)))


class TestStacked:
    """Columns of several series."""

    @pytest.mark.parametrize(
        ("most", "ticks"),
        [
            (0, (2, 1, 0)),
            (1, (2, 1, 0)),
            (3, (4, 2, 0)),
            (9, (10, 5, 0)),
            (11, (20, 10, 0)),
            (4_100, (6_000, 3_000, 0)),
        ],
    )
    def test_ticks_are_whole_numbers_that_people_read(self, most: int, ticks: tuple[int, int, int]) -> None:
        """The topmost is not below what is drawn."""
        assert ticks == stacked(("delivered",), [Point(label="x", values=(most,))]).ticks

    @given(POINTS)
    def test_no_piece_leaves_the_drawing(self, points: list[Point]) -> None:
        """They stand on each other, and what is not nothing is seen where there is room."""
        chart = stacked(SERIES, points)
        for column in chart.columns:
            floor = HEIGHT
            for piece in column.pieces:
                assert 0 <= piece.y <= HEIGHT
                assert abs(piece.y + piece.height - floor) <= 0.02
                floor = piece.y
        assert tuple(sum(values) for values in zip(*(each.values for each in points), strict=True)) == (
            chart.totals if points else ()
        )

    def test_a_single_failure_among_thousands_is_seen(self) -> None:
        """Else nobody would look for it."""
        column = stacked(SERIES, [Point(label="12:00", values=(9_999, 0, 1))]).columns[0]
        assert ["delivered", "given up"] == [piece.series for piece in column.pieces]
        assert column.pieces[1].height >= 1
        assert "12:00: 9,999 delivered, 0 deferred, 1 given up" == column.words

    def test_marks_are_spread_from_first_to_last(self) -> None:
        """Few enough to be read."""
        chart = stacked(("delivered",), [Point(label=str(number), values=(1,)) for number in range(60)], marks=3)
        assert ("0", "30", "59") == chart.marks


def test_shares_fill_the_bar() -> None:
    """In order, without gaps; nothing of nothing is nothing."""
    assert [(0.0, 50.0), (50.0, 25.0), (75.0, 25.0)] == shares((2, 1, 1))
    assert [(0.0, 0.0), (0.0, 0.0)] == shares((0, 0))


@pytest.mark.parametrize(
    ("value", "most", "level"), [(0, 9, 0), (1, 1, LEVELS), (1, 100_000, 1), (100_000, 100_000, LEVELS)]
)
def test_heat(value: int, most: int, level: int) -> None:
    """By the logarithm: one among thousands is warm, not cold."""
    assert level == heat(value, most)
