"""Draws a kept result: the usual shapes, forward and backward, as multiples of the copy limit."""

from pathlib import Path

from benchmarks.cases import BOTH
from benchmarks.results import COPY, OURS, TORCH, Result, Row

BARS = {  # label: the columns whose best is shown, and its colour (Okabe and Ito's)
    "ours": ((OURS,), "#0072B2"),
    "ours, XLA": (("ours XLA",), "#56B4E9"),
    "Keras, graph": (("Keras graph",), "#D55E00"),
    "Keras, XLA": (("Keras XLA",), "#E69F00"),
    "PyTorch": (TORCH, "#7F7F7F"),
}
DPI = 110
INCHES_A_BAR = 0.13


def rows(result: Result) -> list[Row]:
    return [
        row
        for row in result.rows
        if row.case.family == "usual" and row.passes == BOTH and row.timing(COPY)
    ]


def draw(result: Result, path: Path) -> None:
    """Writes the PNG: the same bytes for the same result and release of matplotlib.

    Its background is white and opaque, so that dark pages do not swallow the text.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            'The chart needs matplotlib, of the extra "bench": '
            f'`pip install "keras-norms[bench]"`. Received: {error}.'
        ) from error
    shown = rows(result)
    if not shown:
        raise ValueError(f"The result has no row of the usual shapes, {BOTH}, with a copy limit.")
    with matplotlib.rc_context(matplotlib.rcParamsDefault):
        figure = Figure(
            figsize=(8, 1.2 + INCHES_A_BAR * (len(BARS) + 1.5) * len(shown)), layout="constrained"
        )
        axes = figure.add_subplot()
        _bars(axes, shown)
        figure.legend(
            *axes.get_legend_handles_labels(), ncols=len(BARS), loc="outside upper center"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI, facecolor="white", metadata={"Software": None})


def _bars(axes, shown: list[Row]) -> None:
    height = 1 / (len(BARS) + 1.5)
    for place, (label, (columns, colour)) in enumerate(BARS.items()):
        found = [(i, row, row.best(columns)) for i, row in enumerate(shown)]
        found = [
            (i, timing.wall_median / (row.copies * row.timing(COPY).wall_median))
            for i, row, timing in found
            if timing
        ]
        if not found:
            continue
        centres = [i + height * (place - (len(BARS) - 1) / 2) for i, _ in found]
        # From the copy limit on: a bar has no length on a logarithmic axis but from some base.
        bars = axes.barh(
            centres, [x - 1 for _, x in found], height, left=1, color=colour, label=label
        )
        axes.bar_label(bars, [f"{x:.1f}" for _, x in found], padding=2, fontsize=6.5)
    axes.set_yticks(range(len(shown)), [_name(row) for row in shown], fontsize=8)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.set_xscale("log")
    ticks = [0.5, 1, 2, 5, 10, 20, 50, 100]
    axes.set_xticks(ticks, [f"{tick:g}×" for tick in ticks])
    axes.minorticks_off()
    axes.margins(x=0.08)
    axes.set_xlabel(
        f"{BOTH}: time over that of copying the bytes that must move (shorter is better)"
    )
    axes.grid(axis="x", color="#D0D0D0", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _name(row: Row) -> str:
    return f"{row.case.name}\n{'×'.join(map(str, row.case.shape))}"
