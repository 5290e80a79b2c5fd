"""`python -m benchmarks.render`: writes the kept result into README.md, between its markers.

The chart is drawn beside the kept result, and shown above the tables.
"""

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path

from benchmarks import chart, goals, results
from benchmarks.cases import Case
from benchmarks.results import ADDONS, KERAS, OURS, TORCH, Memory, Result, Row

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
README = Path(__file__).parents[1] / "README.md"
SHOWN = ("usual", "inference")  # families; the others are folded away
PEERS = {"torch": "torch", "addons": "tensorflow-addons"}
MODELS, MORE = "models", "more layers"  # families with tables of their own
NAMES = 3  # columns of names; the others are numbers
HEAD = (
    *("layer", "shape", "pass", "ours", "ours, XLA"),
    *("best of Keras", "times faster", "torch", "addons", "× copy limit"),
)
HEAD_MORE = (
    *("layer", "shape", "pass", "ours", "ours, XLA"),
    *("ours, portable", "best of Keras", "addons", "times faster"),
)
HEAD_MODELS = (
    *("model", "batch", "pass", "ours", "ours, XLA"),
    *("Keras, graph", "Keras, XLA", "times faster"),
)


def render(text: str, result: Result, image: str | None = None) -> str:
    """`text` with what stands between the markers replaced by chart and tables of `result`."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"The text must hold `{BEGIN}` and then `{END}`, once each.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{section(result, image)}\n{END}{rest.split(END)[1]}"


def section(result: Result, image: str | None = None) -> str:
    """The tables, and above them the chart, if `image` is its path as seen from the README."""
    shown = [row for row in result.rows if row.case.family in SHOWN]
    models, more = ([r for r in result.rows if r.case.family == f] for f in (MODELS, MORE))
    folded = [r for r in result.rows if r.case.family not in (*SHOWN, MODELS, MORE)]
    parts = [_about(result)]
    if image:
        parts.append(f"![Forward and backward of the usual shapes, over the copy limit]({image})")
    parts.append(_table(HEAD, _line, shown))
    if models:
        parts.append(
            "Whole models, a small CNN and a small Transformer; every norm in them is ours or "
            "Keras', all else is the same. Times faster: the better of ours than the better of "
            f"Keras'.\n\n{_table(HEAD_MODELS, _model_line, models)}"
        )
    if folded:
        parts.append(
            _folded(
                f"{len(folded)} more rows: channels first, other axes, tiny and awkward shapes, "
                "other dtypes",
                _table(HEAD, _line, folded),
            )
        )
    if more:
        parts.append(
            _folded(
                f"More layers, {len(more)} rows: activations inside of the layer, layers that "
                "Keras lacks",
                "Times faster: than the best of Keras, or where Keras lacks the layer, than ours "
                f"on the portable path.\n\n{_table(HEAD_MORE, _more_line, more)}",
            )
        )
    parts += [_short(*finding) for finding in goals.summary(result)]
    if result.memory:
        parts.append(_memory(result))
    return "\n\n".join(parts)


def _folded(title: str, text: str) -> str:
    return f"<details><summary>{title}</summary>\n\n{text}\n\n</details>"


def _short(sentence: str, rows: list[str]) -> str:
    """What a goal says, and folded away the rows that fall short."""
    return _folded(sentence, "\n".join(f"- {row}" for row in rows)) if rows else sentence


def _about(result: Result) -> str:
    about = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    peers = "".join(f", {name} {about[key]}" for key, name in PEERS.items() if about.get(key))
    speed = ""
    if result.mean_ratio:
        slow = len(result.slow_rows)
        speed = (
            f" Geometric mean over the {len(result.compared)} rows that Keras has: "
            f"{1 / result.mean_ratio:.1f} times faster than the best of Keras; "
            f"{slow} row{' is' if slow == 1 else 's are'} more than {results.SLOWER:g} times "
            "slower."
        )
    return (
        f"{about['processor']}, {about['threads']} threads, {about['date']}; {versions}{peers}. "
        "Milliseconds, median of runs in turn. Best of Keras: eager, graph or XLA; torch: the "
        "better of NCHW and channels_last; addons: tensorflow-addons' group and instance norm, "
        "its TensorFlow's layer and batch norm, the better of graph and XLA; copy limit: the time "
        "to copy x once forward, 2.5 times forward and backward (shown from 1 MiB on)."
        f"{speed}"
    )


def _table(head: tuple[str, ...], line: Callable, rows: list[Row]) -> str:
    """Without the columns of numbers that no row has."""
    lines = [line(row) for row in rows]
    kept = [i for i in range(len(head)) if i < NAMES or any(cells[i] for cells in lines)]
    ruler = ["---" if i < NAMES else "--:" for i in range(len(head))]
    return "\n".join(_cells(*(cells[i] for i in kept)) for cells in (head, ruler, *lines))


def _line(row: Row) -> tuple[str, ...]:
    limit = row.to_limit
    return (
        *_begin(row),
        _milliseconds(row, *KERAS),
        _times(row.ratio()),
        _milliseconds(row, *TORCH),
        _milliseconds(row, *ADDONS),
        f"{limit:.1f}" if limit and row.case.bytes >= 1 << 20 else "",
    )


def _more_line(row: Row) -> tuple[str, ...]:
    return (
        *_begin(row),
        _milliseconds(row, "ours portable"),
        _milliseconds(row, *KERAS),
        _milliseconds(row, *ADDONS),
        _times(row.ratio() or row.ratio(others=("ours portable",))),
    )


def _model_line(row: Row) -> tuple[str, ...]:
    names = (OURS, "ours XLA", "Keras graph", "Keras XLA")
    return (
        f"{row.case.model}, `{row.case.layer_name}`",
        _shape(row.case),
        row.passes,
        *(_milliseconds(row, name) for name in names),
        _times(row.ratio(ours=names[:2])),
    )


def _begin(row: Row) -> tuple[str, ...]:
    case = row.case
    dtype = "" if case.dtype == "float32" else f" {case.dtype}"
    times = (_milliseconds(row, name) for name in (OURS, "ours XLA"))
    return f"`{case.name}`", _shape(case) + dtype, row.passes, *times


def _cells(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _times(ratio: float | None) -> str:
    return f"**{1 / ratio:.1f}**" if ratio else ""


def _milliseconds(row: Row, *names: str) -> str:
    best = row.best(names)
    return f"{best.wall_median:.3g}" if best else ""


def _memory(result: Result) -> str:
    columns = list(dict.fromkeys(memory.column for memory in result.memory))
    lines = [
        "MiB of memory: the peak of a training step, in which y and dx are, which it hands out; "
        "and, after the stroke, what a tape keeps between its forward and its backward pass, in "
        "which x is.",
        "",
        f"| | x | y, dx | {' | '.join(columns)} |",
        f"|---|--:|--:|{'--:|' * len(columns)}",
    ]
    for case, of_case in result.memory_by_case.items():
        by_column = {memory.column: memory for memory in of_case}
        lines.append(
            _cells(
                f"`{case.name}` {_shape(case)}",
                _mib(case.bytes),
                _mib(of_case[0].outputs),
                *(_peak_and_kept(by_column.get(column)) for column in columns),
            )
        )
    return "\n".join(lines)


def _peak_and_kept(memory: Memory | None) -> str:
    if memory is None or memory.bytes is None:
        return ""
    kept = "" if memory.saved is None else f" / {_mib(memory.saved)}"
    return _mib(memory.bytes) + kept


def _mib(size: int) -> str:
    return f"{size / 2**20:.0f}"


def _shape(case: Case) -> str:
    return "×".join(map(str, case.shape))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--json", type=Path, help="a kept result (default: the last one)")
    parser.add_argument("readme", type=Path, nargs="?", default=README)
    options = parser.parse_args(arguments)
    path = options.json or results.latest()
    result = results.read(path)
    picture = path.with_suffix(".png")
    chart.draw(result, picture)
    image = os.path.relpath(picture, options.readme.parent)
    options.readme.write_text(render(options.readme.read_text(), result, image))
    return 0


if __name__ == "__main__":
    sys.exit(main())
