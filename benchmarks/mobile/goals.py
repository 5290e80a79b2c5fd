"""What is aimed at, and where a run falls short of it."""

from collections.abc import Iterator

from benchmarks.mobile.results import (
    ANY,
    APPLICATIONS,
    CPU,
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

# Times that a norm is to take less than in Keras' file, with target="cpu".
LESS = {
    ("InstanceNormalization", "conv"): 11.0,
    ("GroupNormalization(8)", "conv"): 6.0,
    ("LayerNormalization", "conv"): 2.0,
    ("LayerNormalization", "dense"): 2.5,
}
GPU_SQNR = 45.0  # dB, at
GPU_DEVIATIONS = ("100", "5000")
INT16X8_SQNR = 38.0
INT8_LOSS = 6.0  # dB below the network without norms
ERROR = 1e-5  # of the largest output
NAMED = "WeightNormalization(Conv2D)"  # the wrapper that is to cost nothing


def less(row: Timed) -> float | None:
    return LESS.get((row.name, row.net))


def shortfalls(result: Result) -> list[str]:
    """One line for each number that misses its goal, and for each that is missing itself."""
    parts = (_norms, _gpu, _int16x8, _gain, _wrappers, _errors, _applications)
    return [line for part in parts for line in part(result)]


def _norms(result: Result) -> Iterator[str]:
    for row in result.of(NORMS):
        for column, found in row.files.items():
            if isinstance(found, str):
                yield f"{_named(row)}: no time for {column}: {found}"
        goal, gain = less(row), row.gain(CPU)
        if goal and gain and gain < goal:
            yield f"{_named(row)} takes {gain:.1f} times less than Keras', not {goal:g} times."
        keras, ours, least = row.cost(KERAS), row.cost(CPU), row.least_cost()
        if None not in (keras, ours, least) and ours > keras + least:
            yield f"{_named(row)} takes longer than Keras': {ours:.0f} µs instead of {keras:.0f}."


def _gpu(result: Result) -> Iterator[str]:
    for row in result.gpu:
        found = row.outcomes[OURS]
        if isinstance(found, str):
            yield f"`{row.name}` on the GPU delegate: {found}"
            continue
        for deviation, sqnr in found.items():
            if sqnr < GPU_SQNR:
                aim = "" if deviation in GPU_DEVIATIONS else ", where there is no goal"
                yield (
                    f"`{row.name}` on the GPU delegate at deviation {deviation}: "
                    f"{decibels(sqnr)}, not {GPU_SQNR:g} dB{aim}."
                )


def _int16x8(result: Result) -> Iterator[str]:
    for row in result.of(INT16X8):
        found = row.columns[OURS]
        if isinstance(found, str):
            yield f"`{row.name}` in int16x8: {found}"
        elif found[0] < INT16X8_SQNR:
            yield f"`{row.name}` in int16x8: {found[0]:.1f} dB, not {INT16X8_SQNR:g}."


def _gain(result: Result) -> Iterator[str]:
    for row in result.of(GAIN):
        ours, without = row.sqnr(OURS), row.sqnr(WITHOUT)
        if ours is None or without is None:
            yield f"{_named(row)} in int8 at varying gain: no number to compare."
        elif ours < without - INT8_LOSS:
            yield (
                f"{_named(row)} in int8 at varying gain: {ours:.1f} dB, {without - ours:.1f} below "
                f"the network without it."
            )


def _wrappers(result: Result) -> Iterator[str]:
    for row in result.of(WRAPPERS):
        ours, plain = row.time(ANY), row.time(WITHOUT)
        if ours is None or plain is None:
            yield f"{_named(row)}: no time to compare."
        elif abs(ours / plain - 1) > RESOLUTION and ours > plain:
            yield f"{_named(row)} takes {ours / plain:.2f} times the plain layer's time."


def _errors(result: Result) -> Iterator[str]:
    for row in result.errors:
        for target, found in row.targets.items():
            if isinstance(found, str):
                yield f'`{row.name}`, target="{target}": {found}'
            elif max(found.values()) > ERROR:
                yield f'`{row.name}`, target="{target}": off by {max(found.values()):.2g}.'


def _applications(result: Result) -> Iterator[str]:
    for row in result.of(APPLICATIONS):
        keras = row.file(KERAS)
        for column in (column for column in row.files if column != KERAS):
            file = row.file(column)
            if file is None:
                yield f'{row.name}, target="{column}": {row.files[column]}'
                continue
            if file.folded != file.norms:
                yield (
                    f'{row.name}, target="{column}": {file.folded} of {file.norms} norms are '
                    "folded."
                )
            if keras is None:
                continue
            pairs = {
                "operations": (sum(file.ops.values()), sum(keras.ops.values()), 0),
                "bytes": (file.bytes, keras.bytes, 0),
                "µs": (row.time(column), row.time(KERAS), RESOLUTION),
            }
            for what, (mine, theirs, apart) in pairs.items():
                if None not in (mine, theirs) and mine > theirs * (1 + apart):
                    yield (
                        f'{row.name}, target="{column}": {mine:,.0f} {what}, Keras\' file '
                        f"{theirs:,.0f}."
                    )


def _named(row) -> str:
    return f"`{row.name}`, {row.net}" if row.net else f"`{row.name}`"
