"""`python -m benchmarks.render`: writes the kept result into README.md, between its markers."""

import argparse
import sys
from pathlib import Path

from benchmarks import results
from benchmarks.cases import Case
from benchmarks.results import KERAS, OURS, TORCH, Result, Row

BEGIN, END = "<!-- benchmarks:begin -->", "<!-- benchmarks:end -->"
README = Path(__file__).parents[1] / "README.md"
SHOWN = ("usual", "inference")  # families; the others are folded away
HEAD = (
    "| layer | shape | pass | ours | ours, XLA | best of Keras | times faster | torch "
    "| × copy limit |\n|---|---|---|--:|--:|--:|--:|--:|--:|"
)


def render(text: str, result: Result) -> str:
    """`text` with what stands between the markers replaced by the tables of `result`."""
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise ValueError(f"The text must hold `{BEGIN}` and then `{END}`, once each.")
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{section(result)}\n{END}{rest.split(END)[1]}"


def section(result: Result) -> str:
    shown = [row for row in result.rows if row.case.family in SHOWN]
    folded = [row for row in result.rows if row.case.family not in SHOWN]
    parts = [_about(result), _table(shown)]
    if folded:
        parts.append(
            f"<details><summary>{len(folded)} more rows: channels first, other axes, tiny and "
            f"awkward shapes, other dtypes</summary>\n\n{_table(folded)}\n\n</details>"
        )
    if result.memory:
        parts.append(_memory(result))
    return "\n\n".join(parts)


def _about(result: Result) -> str:
    about = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    torch = f", torch {about['torch']}" if about.get("torch") else ""
    speed = ""
    if result.mean_ratio:
        speed = (
            f" Geometric mean over all {len(result.rows)} rows: {1 / result.mean_ratio:.1f} times "
            f"faster than the best of Keras; {len(result.slow_rows)} rows are more than "
            f"{results.SLOWER:g} times slower."
        )
    return (
        f"{about['processor']}, {about['threads']} threads, {about['date']}; {versions}{torch}. "
        "Milliseconds, median of runs in turn. Best of Keras: eager, graph or XLA; torch: the "
        "better of NCHW and channels_last; copy limit: the time to copy x once forward, 2.5 times "
        f"forward and backward (shown from 1 MiB on).{speed}"
    )


def _table(rows: list[Row]) -> str:
    return "\n".join([HEAD, *map(_line, rows)])


def _line(row: Row) -> str:
    case, ratio, limit = row.case, row.ratio(), row.to_limit
    cells = (
        f"`{case.name}`",
        _shape(case) + ("" if case.dtype == "float32" else f" {case.dtype}"),
        row.passes,
        _milliseconds(row, OURS),
        _milliseconds(row, "ours XLA"),
        _milliseconds(row, *KERAS),
        f"**{1 / ratio:.1f}**" if ratio else "",
        _milliseconds(row, *TORCH),
        f"{limit:.1f}" if limit and case.bytes >= 1 << 20 else "",
    )
    return f"| {' | '.join(cells)} |"


def _milliseconds(row: Row, *names: str) -> str:
    best = row.best(names)
    return f"{best.wall_median:.3g}" if best else ""


def _memory(result: Result) -> str:
    case, outputs = result.memory[0].case, result.memory[0].outputs
    lines = [
        f"Peak memory of a training step through `{case.name}` on {_shape(case)}. What it hands "
        f"out, y and dx, is {outputs / 2**20:.0f} MiB of it.",
        "",
        "| | MiB |\n|---|--:|",
    ]
    lines += [
        f"| {m.column} | {'' if m.bytes is None else f'{m.bytes / 2**20:.0f}'} |"
        for m in result.memory
    ]
    return "\n".join(lines)


def _shape(case: Case) -> str:
    return "×".join(map(str, case.shape))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.render", description=__doc__)
    parser.add_argument("--json", type=Path, help="a kept result (default: the last one)")
    parser.add_argument("readme", type=Path, nargs="?", default=README)
    options = parser.parse_args(arguments)
    result = results.read(options.json or results.latest())
    options.readme.write_text(render(options.readme.read_text(), result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
