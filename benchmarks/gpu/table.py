"""Prints a run: what was checked, every timed row, and a table of their means last."""

import statistics
from collections.abc import Iterable, Iterator

from benchmarks.gpu.cases import CLONE, COMPILED, EAGER, OURS, TRITON, TWICE
from benchmarks.gpu.results import GOALS, Result, Row

COLUMNS = (OURS, TWICE, EAGER, COMPILED, TRITON, CLONE)
SHOWN = 20  # rows of a list; the file has all


def text(result: Result) -> str:
    """All of it. The part that must not be missed stands at the end."""
    parts = [*_rows(result), *_checks(result), *_missing(result), *_failures(result)]
    return "\n".join([*_opening(result), *parts, *_means(result)])


def _opening(result: Result) -> Iterator[str]:
    about = result.machine
    yield ", ".join(f"{k} {v}" for k, v in about.items() if k not in ("copy_rate", "l2_bytes"))
    if result.copy_rate:
        yield f"copying 1 GiB: {result.copy_rate / 1e12:.2f} TB/s, read and written; this is 100 %"


def _rows(result: Result) -> Iterator[str]:
    rows = result.rows
    if not rows:
        return
    yield ""
    yield "Microseconds, cold (hot): medians of replayed graphs, mean of two passes. %: of the"
    yield "copy rate, by the bytes that must move; own: by those that ours moves."
    heads = "".join(f"{name:>17}" for name in COLUMNS)
    yield f"{'':62}{heads}{'%':>6}{'own':>6}{'torch/ours':>12}"
    for row in rows:
        cells = "".join(f"{_cell(row, name):>17}" for name in COLUMNS)
        flag = "  SLOWER than torch" if row.slower else ""
        numbers = f"{_percent(row.part()):>6}{_percent(row.part('own_bytes')):>6}"
        ratio = f"{_number(row.ratio(EAGER)):>12}"
        yield f"{row.kept['title']:62}{cells}{numbers}{ratio}{flag}"
    reasons: dict[str, int] = {}
    for row in rows:
        for name, found in row.columns.items():
            why = None
            if isinstance(found, str):
                why = f"without a time: {name}: {found}"
            elif "no_graph" in found:
                why = (
                    f"* launched one by one, as no graph was captured: {name}: {found['no_graph']}"
                )
            if why:
                reasons[why] = reasons.get(why, 0) + 1
    yield from (f"{why} ({count} rows)" for why, count in reasons.items())


def _checks(result: Result) -> Iterator[str]:
    done = [row for row in result.checks if "outputs" in row]
    if done:
        yield ""
        yield f"checked against float64: {len(done)} cases; worst relative error (bound)"
        worst: dict[tuple, dict] = {}
        for row in done:
            for out in row["outputs"]:
                key = (out["function"], out["output"])
                dtype = row["item"]["dtype"]
                if not _less(out, worst.get((*key, dtype))):
                    worst[*key, dtype] = out
        dtypes = sorted({key[2] for key in worst})
        yield f"{'':28}" + "".join(f"{dtype:>20}" for dtype in dtypes)
        for name in dict.fromkeys(key[:2] for key in worst):
            cells = (worst.get((*name, dtype)) for dtype in dtypes)
            shown = (f"{c['error']:.1e} ({c['limit']:.0e})" if c else "-" for c in cells)
            yield f"{name[0]:18}{name[1]:10}" + "".join(f"{cell:>20}" for cell in shown)
    for row in result.sanitizer:
        outcome = "passed" if "passed" in row else "skipped" if "skipped" in row else "FAILED"
        first = str(row.get(outcome.lower(), "")).splitlines()[:1]
        yield f"{row['title']}: {outcome} {''.join(first)[:140]}"


def _less(a: dict, b: dict | None) -> bool:
    """Whether the error is less than another; one that is not a number is the worst."""
    return b is not None and (a["error"] < b["error"] or b["error"] != b["error"])


def _missing(result: Result) -> Iterator[str]:
    reasons: dict[str, list[str]] = {}
    for row in result.missing:
        why = row.get("skipped") or row["failed"]
        reasons.setdefault(why, []).append(row["title"])
    for why, titles in reasons.items():
        more = f" and {len(titles) - 1} more" if len(titles) > 1 else ""
        yield f"no result: {titles[0]}{more}: {why.splitlines()[0]}"


def _failures(result: Result) -> Iterator[str]:
    failures = result.failures
    for row in failures[:SHOWN]:
        why = row.get("failed") or "; ".join(row["problems"][:4])
        yield f"FAILED: {row['title']}: {why}"
    if len(failures) > SHOWN:
        yield f"FAILED: {len(failures) - SHOWN} more"


def _means(result: Result) -> Iterator[str]:
    rows = result.rows
    if rows:
        groups: dict[tuple, list[Row]] = {}
        for row in rows:
            case = row.kept["case"]
            key = (case["layer"], case["layout"], case["dtype"], row.kept["passes"])
            groups.setdefault(key, []).append(row)
        yield ""
        yield "Geometric means (x/ours: how often faster ours is)"
        heads = ("%", "own %", "torch/ours", "compile/ours", "Triton/ours", "clone/ours")
        heads += ("2 reads/ours", "slower")
        yield f"{'':44}{'rows':>5}" + "".join(f"{head:>13}" for head in heads)
        for key, found in groups.items():
            numbers = [
                _percent(_mean(r.part(size) for r in found)) for size in ("bytes", "own_bytes")
            ]
            for name in (EAGER, COMPILED, TRITON, CLONE, TWICE):
                numbers.append(_number(_mean(r.ratio(name) for r in found)))
            numbers.append(str(sum(r.slower for r in found)))
            cells = "".join(f"{number:>13}" for number in numbers)
            yield f"{' '.join(key):44}{len(found):5}{cells}"
        slow = [row for row in rows if row.slower]
        for row in slow[:SHOWN]:
            yield f"SLOWER than torch: {row.kept['title']}: {row.ratio(EAGER):.2f}"
        if len(slow) > SHOWN:
            yield f"SLOWER than torch: {len(slow) - SHOWN} more"
        yield f"largest difference between the passes: {max(row.spread for row in rows):.1%}"
        for goal in GOALS:
            mean, count = goal.reached(rows)
            reached = "no rows" if mean is None else "reached" if mean >= goal.least else "MISSED"
            found = f"{_percent(mean)} % in {count} rows"
            yield f"goal: {goal.name} >= {goal.least:.0%}: {found}, {reached}"
    checked = [row for row in result.checks if "outputs" in row]
    yield (
        f"{len(checked)} checks, {len(result.failures)} failed; {len(rows)} rows timed, "
        f"{sum(row.slower for row in rows)} slower than torch; {len(result.missing)} without result"
    )


def _mean(values: Iterable[float | None]) -> float | None:
    found = [value for value in values if value]
    return statistics.geometric_mean(found) if found else None


def _cell(row: Row, name: str) -> str:
    if name not in row.columns:
        return ""
    cold, hot = row.seconds(name), row.seconds(name, "hot")
    if cold is None:
        return "-"
    mark = "*" if "no_graph" in row.columns[name] else ""
    return f"{cold * 1e6:.1f} ({hot * 1e6:.1f}){mark}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
