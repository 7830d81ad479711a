"""Plots of scores, as the bytes of a PNG or SVG file.

Drawn with matplotlib's object interface only: no window, no global state, the same picture from any
thread. Functions import matplotlib when called, because it is slow to load.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

Kind = Literal["png", "svg"]

INK = "#22313a"
FAINT = "#9aa8ae"
GRID = "#e4e9eb"
ACCENT = "#0f766e"
WARM = "#c2410c"
RIGHT = ("#f5f8f8", "#b9dcd7", "#4aa79c", "#0f766e", "#0a4a45")  # shades from none to all
WRONG = ("#f5f8f8", "#fbd9bd", "#f0914c", "#c2410c", "#7c2d12")
# Colours that stay apart for colour-blind readers too; a second line style follows after eight.
PALETTE = ("#0f766e", "#c2410c", "#4f46e5", "#b45309", "#be185d", "#0284c7", "#65a30d", "#57534e")
_STYLES = ("-", "--", ":", "-.")
_DPI = 200
# In points above a mark: where its name may stand, the nearest first.
_OFFSETS = (-11.0, 5.0, 14.0, 23.0, -20.0, *(float(up) for up in range(32, 1000, 9)))


def confusion_matrix(labels: Sequence[str], columns: Sequence[str], matrix: ArrayLike, *, kind: Kind = "png") -> bytes:
    """A confusion matrix: colour is the share of the truth's row (green right, orange wrong), the numbers are cells.

    Args:
        labels: names of the rows (the truth).
        columns: names of the columns (what was said); as `labels`, or with one more at the end.
        matrix: counts, shape (rows, columns).
        kind: the file's format.
    """
    counts = np.asarray(matrix, np.int64).reshape(len(labels), len(columns))
    support = counts.sum(axis=1)
    share = np.divide(counts, support[:, None], out=np.zeros(counts.shape), where=support[:, None] > 0)
    right = np.eye(*counts.shape, dtype=bool)
    # The root lifts mistakes of a few percent out of the background.
    colours = np.where(right[..., None], _shades(RIGHT)(share), _shades(WRONG)(np.sqrt(share)))
    longest = max((len(name) for name in [*labels, *columns]), default=1)
    cell = 0.28 + 0.05 * len(str(counts.max(initial=0)))
    margin = 0.7 + 0.07 * min(longest, 30)
    figure = _figure(max(3.2, cell * len(columns) + margin + 0.6), max(2.6, cell * len(labels) + margin))
    axes = figure.add_subplot()
    if counts.size:
        axes.imshow(colours, aspect="equal")
    for row, column in zip(*np.nonzero(counts), strict=True):
        dark = share[row, column] > (0.55 if right[row, column] else 0.4)
        colour = "white" if dark else INK
        axes.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=7.5, color=colour)
    _names(axes, "x", columns, rotation=45)
    _names(axes, "y", [f"{name}  ({n:,})" for name, n in zip(labels, support, strict=True)])
    axes.set_xticks(np.arange(-0.5, len(columns)), minor=True)
    axes.set_yticks(np.arange(-0.5, len(labels)), minor=True)
    axes.grid(which="minor", color="white", linewidth=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("found", color=INK, fontsize=9)
    axes.set_ylabel("truth (cells)", color=INK, fontsize=9)
    return _bytes(figure, kind)


def precision_recall(curves: pl.DataFrame, figures: Mapping[str, float | None], *, kind: Kind = "png") -> bytes:
    """Precision against recall, one line per label.

    Args:
        curves: columns label, recall, precision.
        figures: label → its average precision, for the legend; labels are listed from best to worst.
        kind: the file's format.
    """
    order = sorted(curves["label"].unique().to_list(), key=lambda label: (-(figures.get(label) or 0), label))
    figure = _figure(6.6, 4.0)
    axes = figure.add_subplot()
    for index, label in enumerate(order):
        one = curves.filter((pl.col("label") == label) & (pl.col("precision") > 0))
        value = figures.get(label)
        # The blank keeps a name such as "_x" from being taken for "not in the legend".
        name = label if value is None else f"{label}  {value:.3f}"
        colour, style = PALETTE[index % len(PALETTE)], _STYLES[index // len(PALETTE) % len(_STYLES)]
        axes.plot(one["recall"], one["precision"], style, color=colour, linewidth=1.8, label=f" {name}")
    _unit_square(axes)
    axes.set_xlabel("recall", color=INK)
    axes.set_ylabel("precision", color=INK)
    if order:
        _legend(axes, "AP at IoU .50", beside=True)
    return _bytes(figure, kind)


def reliability(bins: pl.DataFrame, error: float | None, *, kind: Kind = "png") -> bytes:
    """How often a name is right against how sure it was said, and how many cells were said so surely.

    Args:
        bins: columns low, high, cells, confidence, accuracy.
        error: the expected calibration error, for the title.
        kind: the file's format.
    """
    figure = _figure(5.2, 4.4)
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    middle = (bins["low"].to_numpy() + bins["high"].to_numpy()) / 2
    width = bins["high"].to_numpy() - bins["low"].to_numpy()
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1, linestyle="--", zorder=1)
    axes.bar(middle, bins["accuracy"], width * 0.92, color=ACCENT, alpha=0.25, linewidth=0, zorder=2)
    axes.plot(bins["confidence"], bins["accuracy"], "o-", color=ACCENT, markersize=4.5, linewidth=1.6, zorder=3)
    _unit_square(axes)
    axes.set_ylabel("share that is right", color=INK)
    if error is not None:
        axes.set_title(f"expected calibration error {error:.3f}", fontsize=9, color=INK, loc="left")
    below.bar(middle, bins["cells"], width * 0.92, color=FAINT, linewidth=0)
    _plain(below)
    below.set_xlabel("confidence", color=INK)
    below.set_ylabel("cells", color=INK)
    return _bytes(figure, kind)


def accuracy_against_coverage(
    curve: pl.DataFrame, accepted: tuple[float, float] | None = None, *, kind: Kind = "png"
) -> bytes:
    """Accuracy of the surest cells against their share.

    Args:
        curve: columns coverage, accuracy.
        accepted: coverage and accuracy of the referral rule that was used; drawn as a point.
        kind: the file's format.
    """
    figure = _figure(5.2, 4.4)
    axes = figure.add_subplot()
    axes.plot(curve["coverage"], curve["accuracy"], color=ACCENT, linewidth=1.8, label="by confidence")
    values = [*curve["accuracy"].to_list()]
    if accepted is not None:
        axes.plot(*accepted, "o", color=WARM, markersize=7, label="as referred")
        values.append(accepted[1])
        _legend(axes, None)
    # The first few cells make the curve jump; the eye needs the part where there are many.
    steady = curve.filter(pl.col("coverage") >= 0.1)["accuracy"].to_list() or values
    low = min([*steady, *values[-1:]], default=0.0)
    axes.set_ylim(max(0.0, low - 0.25 * (1 - low) - 0.005), 1.0 + 0.06 * (1 - low) + 0.001)
    axes.set_xlim(0, 1.02)
    _plain(axes)
    axes.set_xlabel("coverage (share of cells named without a person)", color=INK)
    axes.set_ylabel("accuracy", color=INK)
    return _bytes(figure, kind)


def bars(
    names: Sequence[str],
    values: Sequence[float | None],
    intervals: Sequence[Sequence[float] | None],
    axis_title: str,
    *,
    kind: Kind = "png",
) -> bytes:
    """One horizontal bar per name between 0 and 1, with a whisker for its interval.

    Args:
        names: from top to bottom.
        values: None: undefined, drawn as "–".
        intervals: [low, high] or None, one per name.
        axis_title: what the values are.
        kind: the file's format.
    """
    figure = _figure(6.2, 0.9 + 0.27 * max(2, len(names)))
    axes = figure.add_subplot()
    rows = np.arange(len(names))
    axes.barh(rows, [value or 0 for value in values], 0.62, color=ACCENT, alpha=0.85, linewidth=0)
    for row, (value, interval) in enumerate(zip(values, intervals, strict=True)):
        reach = value or 0
        if interval is not None:
            axes.plot(interval, [row, row], color=INK, linewidth=1.4, solid_capstyle="butt")
            for end in interval:
                axes.plot([end, end], [row - 0.16, row + 0.16], color=INK, linewidth=1.4)
            reach = max(reach, interval[1])
        text = "–" if value is None else f"{value:.3f}"
        axes.text(reach + 0.012, row, text, va="center", fontsize=8, color=INK)
    _names(axes, "y", names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.09)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    _plain(axes)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(axis_title, color=INK)
    return _bytes(figure, kind)


def grouped_bars(
    names: Sequence[str],
    values: Mapping[str, Sequence[float | None]],
    intervals: Mapping[str, Sequence[Sequence[float] | None]],
    axis_title: str,
    *,
    kind: Kind = "png",
) -> bytes:
    """Horizontal bars between 0 and 1, one per name and series side by side, with whiskers for intervals.

    Args:
        names: from top to bottom.
        values: series → one value per name; None: undefined, drawn as "–".
        intervals: series → [low, high] or None, one per name.
        axis_title: what the values are.
        kind: the file's format.
    """
    thick = 0.8 / max(1, len(values))
    figure = _figure(6.6, 1.1 + 0.2 * max(2, len(names) * len(values)))
    axes = figure.add_subplot()
    for index, (series, numbers) in enumerate(values.items()):
        rows = np.arange(len(names)) + (index - (len(values) - 1) / 2) * thick
        colour = PALETTE[index % len(PALETTE)]
        axes.barh(
            rows, [v or 0 for v in numbers], 0.9 * thick, color=colour, alpha=0.8, linewidth=0, label=f" {series}"
        )
        for row, value, interval in zip(rows, numbers, intervals[series], strict=True):
            if interval is not None:
                axes.plot(interval, [row, row], color=INK, linewidth=1.2, solid_capstyle="butt")
            reach = max(value or 0, 0 if interval is None else interval[1])
            text = "–" if value is None else f"{value:.3f}"
            axes.text(reach + 0.012, row, text, va="center", fontsize=7, color=INK)
    _names(axes, "y", names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlim(0, 1.09)
    axes.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    _plain(axes)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(axis_title, color=INK)
    if values:
        _legend(axes, None, beside=True)
    return _bytes(figure, kind)


def score_against_cost(
    names: Sequence[str],
    costs: Sequence[float],
    scores: Sequence[float],
    on_front: Sequence[bool],
    axis_titles: tuple[str, str],
    *,
    chosen: int | None = None,
    limit: float | None = None,
    kind: Kind = "png",
) -> bytes:
    """What each choice scores against what it costs; those that no other beats in both are joined and named.

    Args:
        names: of the choices.
        costs, scores: of each.
        on_front: which are joined by a line.
        axis_titles: of costs and scores.
        chosen: the choice to mark.
        limit: of the costs; drawn as a line, unless it is far beyond all of them.
        kind: the file's format.
    """
    figure = _figure(6.8, 4.4)
    axes = figure.add_subplot()
    front = sorted((index for index, on in enumerate(on_front) if on), key=lambda index: costs[index])
    others = [index for index, on in enumerate(on_front) if not on]
    axes.plot([costs[i] for i in others], [scores[i] for i in others], "o", color=FAINT, markersize=4.5)
    axes.step([costs[i] for i in front], [scores[i] for i in front], "-", where="post", color=ACCENT, linewidth=1.4)
    axes.plot([costs[i] for i in front], [scores[i] for i in front], "o", color=ACCENT, markersize=6)
    if chosen is not None:
        axes.plot(costs[chosen], scores[chosen], "o", markersize=12, markerfacecolor="none", color=WARM)
    if limit is not None and limit < 2 * max(costs):
        axes.axvline(limit, color=WARM, linewidth=1, linestyle="--")
    axes.margins(x=0.06, y=0.12)
    _plain(axes)
    middle = (max(costs) + min(costs)) / 2
    taken: list[tuple[bool, float]] = []
    for index in front:
        # To the side where there is room, below or above, and clear of the names that stand there already.
        left = costs[index] > middle
        height = float(axes.transData.transform((costs[index], scores[index]))[1]) * 72 / figure.dpi
        up = next(up for up in _OFFSETS if all(left != side or abs(height + up - at) >= 9 for side, at in taken))
        taken.append((left, height + up))
        axes.annotate(
            names[index], (costs[index], scores[index]), (-6 if left else 6, up), textcoords="offset points",
            ha="right" if left else "left", fontsize=7.5, color=INK, parse_math=False,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.8},
        )  # fmt: skip
    axes.set_xlabel(axis_titles[0], color=INK)
    axes.set_ylabel(axis_titles[1], color=INK)
    axes.yaxis.label.set_fontsize(9)
    return _bytes(figure, kind)


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Sequence[Sequence[float | None]],
    title: str,
    *,
    kind: Kind = "png",
) -> bytes:
    """A table of figures between 0 and 1, darker where they are higher.

    Args:
        rows, columns: their names.
        values: one list per row; None: nothing to show.
        title: what the figures are.
        kind: the file's format.
    """
    table = np.array([[np.nan if v is None else v for v in row] for row in values], float).reshape(len(rows), -1)
    longest = max((len(name) for name in rows), default=1)
    figure = _figure(1.2 + 0.075 * longest + 1.1 * max(1, len(columns)), 1.5 + 0.36 * max(1, len(rows)))
    axes = figure.add_subplot()
    axes.imshow(np.ma.masked_invalid(table), cmap=_shades(RIGHT), vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(table):
        known = np.isfinite(value)
        colour = "white" if known and value > 0.55 else INK
        axes.text(column, row, f"{value:.3f}" if known else "–", ha="center", va="center", fontsize=8, color=colour)
    _names(axes, "x", columns, rotation=25)
    _names(axes, "y", rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title, fontsize=9, color=INK, loc="left", parse_math=False)
    return _bytes(figure, kind)


# -- the look -------------------------------------------------------------------------------------


def _figure(width_in: float, height_in: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width_in, height_in), layout="constrained", facecolor="white")


def _bytes(figure: Figure, kind: Kind) -> bytes:
    stream = io.BytesIO()
    # Without a date, so that equal scores give equal files.
    metadata = {"Software": None} if kind == "png" else {"Date": None}
    figure.savefig(stream, format=kind, dpi=_DPI, bbox_inches="tight", pad_inches=0.08, metadata=metadata)
    return stream.getvalue()


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(color=FAINT, labelcolor=INK, labelsize=8)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.xaxis.label.set_fontsize(9)
    axes.yaxis.label.set_fontsize(9)


def _unit_square(axes: Axes) -> None:
    axes.set_xlim(0, 1.005)
    axes.set_ylim(0, 1.015)
    axes.set_xticks(np.linspace(0, 1, 6))
    axes.set_yticks(np.linspace(0, 1, 6))
    _plain(axes)


def _names(axes: Axes, axis: Literal["x", "y"], names: Sequence[str], rotation: float = 0) -> None:
    """Label the ticks 0, 1 … with names, taken literally ("$" starts no formula)."""
    setter = axes.set_xticks if axis == "x" else axes.set_yticks
    setter(np.arange(len(names)), labels=list(names), parse_math=False, fontsize=8, color=INK)
    if rotation:
        for label in axes.get_xticklabels():
            label.set(rotation=rotation, ha="right", rotation_mode="anchor")


def _legend(axes: Axes, title: str | None, beside: bool = False) -> None:
    legend = axes.legend(
        loc="upper left" if beside else "lower left",
        bbox_to_anchor=(1.01, 1.0) if beside else (0.0, 0.0),
        frameon=False,
        fontsize=8,
        title=title,
        labelcolor=INK,
        borderaxespad=0.3,
    )
    legend.get_title().set(fontsize=8, color=INK)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _shades(colours: Sequence[str]) -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("share", list(colours))
