"""The pictures of a page: dots with bars, and curves, as numbers that a template draws as SVG.

A figure is 320 units wide, so that its letters are as large on a phone as beside it, and it holds no colour: the style
sheet gives it those of the page, light or dark. Every figure says in words what it shows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

WIDTH = 320
LEFT, RIGHT = 8, 8
ROW = 38
"""Height of a dot with its bar and its label."""
FIGURE_HEIGHT, TOP, BOTTOM, GUTTER = 170, 12, 24, 38
"""Of a figure with curves: its height, and the room above it, below it and at its left."""
LONGEST_LABEL = 46
LARGEST = 1e300
"""Numbers beyond it are not drawn: the range of two of them would not be finite."""


class Dot(NamedTuple):
    """A value with its interval; ``low`` and ``high`` are None where there is none."""

    label: str
    value: float
    low: float | None
    high: float | None
    note: str = ""
    """Stands beside the label."""


class Line(NamedTuple):
    """A value to compare dots with, such as a floor."""

    label: str
    at: float


class Series(NamedTuple):
    """A curve: its points, with an interval or None for each."""

    label: str
    points: Sequence[tuple[float, float]]
    bars: Sequence[tuple[float, float] | None] = ()


def number(value: Any) -> float | None:
    """A number that can be drawn, or None: what a store or a folder from elsewhere holds may be anything."""
    fits = isinstance(value, (int, float)) and not isinstance(value, bool)
    # NaN is in no range, and a whole number may be too large for a float.
    return float(value) if fits and -LARGEST <= value <= LARGEST else None


def dots(title: str, rows: Sequence[Dot], lines: Sequence[Line] = (), *, zero: bool = False) -> dict[str, Any] | None:
    """Dots with bars, one row for each, and lines across all of them; None without a row.

    Args:
        title: what the values are, with their unit.
        lines: values to compare with.
        zero: whether zero is the value to compare with, as for differences.
    """
    if not rows:
        return None
    ends = [end for row in rows for end in (row.value, row.low, row.high) if end is not None]
    ends += [line.at for line in lines] + ([0.0] if zero else [])
    low, high = _round_out(min(ends), max(ends))
    if not zero and min(ends) >= 0 and max(ends) <= 1:
        low, high = 0.0, 1.0  # shares are shown whole
    across = _scale(low, high, LEFT, WIDTH - RIGHT)
    bottom = ROW * len(rows)
    return {
        "title": title, "width": WIDTH, "height": bottom + 22, "bottom": bottom,
        "words": f"{title}. " + "; ".join(map(_row_words, rows)) + "".join(f"; {x.label} {x.at:.3f}" for x in lines),
        "rows": [
            {
                "label": short(row.label), "note": row.note, "y": ROW * n + 27, "text_y": ROW * n + 15,
                "x": across(row.value), "x1": across(row.value if row.low is None else row.low),
                "x2": across(row.value if row.high is None else row.high), "bar": None not in (row.low, row.high),
                "said": _row_words(row),
            }
            for n, row in enumerate(rows)
        ],
        "lines": [{"x": across(line.at), "label": line.label, "at": line.at, "kind": n % 3} for n, line in
                  enumerate(lines)],
        "zero": across(0.0) if zero else None,
        "ticks": [{"x": across(at), "label": said} for at, said in _ticks(low, high)],
    }  # fmt: skip


def _row_words(row: Dot) -> str:
    interval = "" if row.low is None or row.high is None else f" [{row.low:.3f}, {row.high:.3f}]"
    return f"{row.label}: {row.value:.3f}{interval}" + (f", {row.note}" if row.note else "")


def curves(title: str, series: Sequence[Series]) -> dict[str, Any] | None:
    """Curves over the steps of a training; None without a point.

    Args:
        title: what the curves are, with their unit.
    """
    series = [one for one in series if one.points]
    if not series:
        return None
    xs = [x for one in series for x, _ in one.points]
    ys = [y for one in series for _, y in one.points]
    ys += [end for one in series for bar in one.bars if bar for end in bar]
    low, high = _round_out(min(0.0, *ys), max(ys))
    across = _scale(min(xs), max(max(xs), min(xs) + 1), GUTTER, WIDTH - RIGHT)
    up = _scale(low, high, FIGURE_HEIGHT - BOTTOM, TOP)
    return {
        "title": title, "width": WIDTH, "height": FIGURE_HEIGHT, "left": GUTTER, "right": WIDTH - RIGHT,
        "bottom": FIGURE_HEIGHT - BOTTOM, "x_end": f"{max(xs):g}", "x_start": f"{min(xs):g}",
        "words": f"{title}, by step. " + "; ".join(map(_series_words, series)),
        "ticks": [{"y": up(at), "label": said} for at, said in _ticks(low, high)],
        "series": [
            {
                "label": one.label, "kind": n % 3,
                "path": "M" + "L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in one.points),
                # Marks on every point of a long curve would hide it.
                "marks": [{"x": across(x), "y": up(y)} for x, y in one.points] if len(one.points) <= 40 else [],
                "bars": [{"x": across(x), "y1": up(bar[0]), "y2": up(bar[1])}
                         for (x, _), bar in zip(one.points, one.bars, strict=False) if bar],
            }
            for n, one in enumerate(series)
        ],
    }  # fmt: skip


def _series_words(one: Series) -> str:
    first, last = one.points[0], one.points[-1]
    return f"{one.label}: {first[1]:.4g} at step {first[0]:g}, {last[1]:.4g} at step {last[0]:g}"


def short(words: str, longest: int = LONGEST_LABEL) -> str:
    """``words``, cut to fit into a figure or a cell."""
    return words if len(words) <= longest else words[: longest - 1] + "…"


def _scale(low: float, high: float, start: float, end: float) -> Any:
    return lambda value: round(start + (end - start) * (value - low) / (high - low), 1)


def _round_out(low: float, high: float) -> tuple[float, float]:
    """The smallest round range that holds both."""
    if high - low <= 1e-9 * max(1.0, abs(low), abs(high)):  # all equal; of a huge value, a half is too little to see
        room = max(0.5, 1e-6 * abs(high))
        low, high = low - room * (low != 0), high + room
    step = _step(high - low)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


def _ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Round values over a range, and their labels, with as many digits as tell them apart."""
    step = _step(high - low)
    ticks = [round(low + step * n, 10) for n in range(round((high - low) / step) + 1)]
    labels: list[str] = []
    for digits in range(6, 18):
        labels = [f"{at:.{digits}g}" for at in ticks]
        if len(set(labels)) == len(labels):
            break
    return list(zip(ticks, labels, strict=True))


def _step(span: float) -> float:
    """A round step that cuts a range into two to five parts."""
    power = 10.0 ** math.floor(math.log10(span))
    return next(power * part for part in (0.2, 0.25, 0.5, 1.0, 2.0) if span / (power * part) <= 5 + 1e-9)
