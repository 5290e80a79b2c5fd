"""The tables of docs/mobile.md, each a function of a kept result; imports no TensorFlow."""

from collections.abc import Iterable

from benchmarks.mobile import goals
from benchmarks.mobile.results import (
    ANY,
    APPLICATIONS,
    CPU,
    CUSTOM,
    GAIN,
    INT16X8,
    KERAS,
    NORMS,
    OURS,
    RESOLUTION,
    WITHOUT,
    WRAPPERS,
    Result,
    Timed,
    decibels,
)

NOT_OURS = "¹"  # after the names of layers that Keras lacks
LACKS = f"{NOT_OURS} Keras lacks the layer: its column is `model.export` of ours."
GROWTH = ("LayerNormalization(axis=(1, 2, 3))", "GroupNormalization(1)")


def machine(result: Result) -> str:
    about = result.machine
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    loads = " to ".join(f"{load:g}" for load in (min(about["load"]), max(about["load"])))
    lines = [
        f"{about['processor']}, {about['cores']} cores, one thread, {about['date']}, commit "
        f"{about['commit']}; {about['system']}; {versions}. Load average during the run: {loads}"
        " (1 is this run alone)."
    ]
    lines += [f"Not measured: {name}, for {why}" for name, why in result.missing.items()]
    return "\n\n".join(lines)


def norms(result: Result) -> str:
    head = ("norm", "net", "Keras", "`cpu`", "`any`", "custom op")
    head += ("Keras / `cpu`", "Keras / `any`", "Keras / op", "goal")
    lines = []
    for row in result.of(NORMS):
        goal = goals.less(row)
        columns = CPU, ANY, CUSTOM
        lines.append(
            (
                _layer(row),
                row.net,
                *(_cost(row, column) for column in (KERAS, *columns)),
                *(_gain(row, column) for column in columns),
                f"{goal:g}" if goal else "",
            )
        )
    bases = {row.net: row.time(WITHOUT) for row in result.of(NORMS)}
    without = ", ".join(f"{net} {_micros(time)}" for net, time in bases.items())
    return (
        f"{_table(head, 2, lines)}\n\n{LACKS} The networks without a norm take, in µs: {without}; "
        f"less than {100 * RESOLUTION:g} % of that cannot be told from nothing."
    )


def growth(result: Result) -> str:
    head = ("norm", "Keras", "`cpu`", "`any`", "custom op")
    rows = {row.name: row for row in result.of(NORMS)}
    return _table(
        head,
        1,
        [
            (_layer(rows[name]), *(_bytes(rows[name].growth(c)) for c in (KERAS, CPU, ANY, CUSTOM)))
            for name in GROWTH
            if name in rows
        ],
    )


def wrappers(result: Result) -> str:
    head = (
        "layer",
        "Keras, plain",
        "Keras",
        "ours, plain",
        "ours",
        "Keras / plain",
        "ours / plain",
    )
    lines = []
    for row in result.of(WRAPPERS):
        times = [row.time(column) for column in (row.without(KERAS), KERAS, WITHOUT, ANY)]
        keras_plain, keras, plain, ours = times
        lines.append(
            (
                _layer(row),
                *map(_micros, times),
                _ratio(keras, keras_plain),
                _ratio(ours, plain),
            )
        )
    return f"{_table(head, 1, lines)}\n\n{LACKS} Goal: 1.00."


def gpu(result: Result) -> str:
    if not result.gpu:
        return _missing(result, "the GPU delegate")
    deviations = _deviations(result)
    head = ("layer", "Keras", "ours", *(f"Keras, {d}" for d in deviations))
    head += tuple(f"ours, {d}" for d in deviations)
    lines, reasons = [], {}
    for row in result.gpu:
        cells = {}
        for column, found in row.outcomes.items():
            if isinstance(found, str):
                number = reasons.setdefault(found, len(reasons) + 1)
                cells[column] = (f"no ({number})", *[""] * len(deviations))
            else:
                cells[column] = ("yes", *(decibels(found[d]) for d in deviations))
        keras, ours = cells[KERAS], cells[OURS]
        lines.append((_layer(row), keras[0], ours[0], *keras[1:], *ours[1:]))
    whole = {
        column: sum(not isinstance(row.outcomes[column], str) for row in result.gpu)
        for column in (KERAS, OURS)
    }
    said = [f"({number}) {reason}" for reason, number in reasons.items()]
    summary = (
        f"Taken whole: {whole[KERAS]} of {len(result.gpu)} files of Keras' export, "
        f"{whole[OURS]} of ours. {LACKS} Goal: {goals.GPU_SQNR:g} dB at "
        f"{' and '.join(goals.GPU_DEVIATIONS)}."
    )
    return "\n\n".join([_table(head, 3, lines), summary, *said])


def _deviations(result: Result) -> list[str]:
    found = [f for row in result.gpu for f in row.outcomes.values() if not isinstance(f, str)]
    return list(found[0]) if found else []


def int16x8(result: Result) -> str:
    rows = result.of(INT16X8)
    lines = [(_layer(row), *(_quality(row.columns[c]) for c in (KERAS, OURS))) for row in rows]
    counts = {c: sum(row.sqnr(c) is not None for row in rows) for c in (KERAS, OURS)}
    return (
        f"{_table(('layer', 'TensorFlow, dB', 'ours, dB'), 1, lines)}\n\nConverted: "
        f"{counts[KERAS]} of {len(rows)} by TensorFlow, {counts[OURS]} by ours. {LACKS} "
        f"Goal: all, {goals.INT16X8_SQNR:g} dB."
    )


def gain(result: Result) -> str:
    head = ("norm", "net", "TensorFlow, dB", "ours, dB", "no norm, ours, dB", "above no norm")
    lines = []
    for row in result.of(GAIN):
        ours, without = row.sqnr(OURS), row.sqnr(WITHOUT)
        apart = "" if ours is None or without is None else f"{ours - without:+.1f}"
        cells = (_quality(row.columns[c], worst=True) for c in (KERAS, OURS, WITHOUT))
        lines.append((_layer(row), row.net, *cells, apart))
    return (
        f"{_table(head, 2, lines)}\n\nIn brackets the worst sample. Goal: no more than "
        f"{goals.INT8_LOSS:g} dB below the network without norms."
    )


def errors(result: Result) -> str:
    lines = []
    targets = list(dict.fromkeys(t for row in result.errors for t in row.targets))
    for target in targets:
        found: dict[str, tuple[float, str]] = {}
        for row in result.errors:
            ratios = row.targets[target]
            for runtime, ratio in ({} if isinstance(ratios, str) else ratios).items():
                found[runtime] = max(found.get(runtime, (0.0, "")), (ratio, row.name))
        for runtime, (ratio, name) in found.items():
            lines.append((f"`{target}`", runtime, f"{ratio:.1e}", f"`{name}`"))
    head = ("target", "runtime", "largest error", "of")
    return (
        f"{_table(head, 2, lines)}\n\nOver {len(result.errors)} layers, relative to the largest "
        f"output of each. Goal: {goals.ERROR:g}."
    )


def applications(result: Result) -> str:
    head = ("network", "file", "BNs folded", "operations", "bytes", "ms")
    lines = []
    for row in result.of(APPLICATIONS):
        for column, found in row.files.items():
            name = "Keras" if column == KERAS else f"ours, `{column}`"
            if isinstance(found, str):
                lines.append((row.name, name, found, "", "", ""))
                continue
            folded = "" if found.norms is None else f"{found.folded} of {found.norms}"
            time = row.time(column)
            milliseconds = "" if time is None else f"{time / 1e3:.2f}"
            ops = f"{sum(found.ops.values())}"
            lines.append((row.name, name, folded, ops, f"{found.bytes:,}", milliseconds))
    return _table(head, 2, lines)


def shortfalls(result: Result) -> str:
    lines = goals.shortfalls(result)
    return "\n".join(f"- {line}" for line in lines) if lines else "Nothing that was measured."


def lowering() -> str:
    from keras_norms.tflite.lowering import TABLE

    columns = list(next(iter(TABLE.values())))
    head = ("norm", *(c if c == "integers" else f"`{c}`" for c in columns))
    return _table(
        head, len(head), [(name, *(forms[c] for c in columns)) for name, forms in TABLE.items()]
    )


BLOCKS = {
    "lowering": lambda _: lowering(),
    "machine": machine,
    "shortfalls": shortfalls,
    "norms": norms,
    "growth": growth,
    "wrappers": wrappers,
    "applications": applications,
    "errors": errors,
    "gpu": gpu,
    "int16x8": int16x8,
    "gain": gain,
}


def _layer(row) -> str:
    return f"`{row.name}`{'' if row.in_keras else NOT_OURS}"


def _missing(result: Result, name: str) -> str:
    return f"Not measured: {result.missing.get(name, 'it was not asked for')}."


def _cost(row: Timed, column: str) -> str:
    cost, least = row.cost(column), row.least_cost()
    if cost is None or least is None:
        found = row.files.get(column)
        return found if isinstance(found, str) else ""
    return f"{cost:.0f}" if cost >= least else f"< {least:.0f}"


def _gain(row: Timed, column: str) -> str:
    gain = row.gain(column)
    if gain is None:
        return ""
    return f"{'' if row.cost(column) >= row.least_cost() else '> '}{gain:.1f}"


def _micros(time: float | None) -> str:
    return "" if time is None else f"{time:.0f}"


def _ratio(a: float | None, b: float | None) -> str:
    return f"{a / b:.2f}" if a and b else ""


def _bytes(count: int | None) -> str:
    return "" if count is None else f"{count:+,}"


def _quality(found: list[float] | str, worst: bool = False) -> str:
    if isinstance(found, str):
        return found
    return f"{decibels(found[0])} ({decibels(found[1])})" if worst else decibels(found[0])


def _table(head: tuple[str, ...], names: int, lines: Iterable[tuple[str, ...]]) -> str:
    """The first columns are names, the others numbers."""
    ruler = ["---" if k < names else "--:" for k in range(len(head))]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ruler, *lines))
