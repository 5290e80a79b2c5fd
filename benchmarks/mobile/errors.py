"""How far float32 files are from Keras, in every runtime of this machine."""

from collections.abc import Callable

from benchmarks.mobile import files, models
from benchmarks.mobile.results import Errors

TARGETS = ("any", "cpu")
ALLOWED = 1.0  # the largest difference is measured, whatever it is


def measure(say: Callable[[str], None]) -> list[Errors]:
    rows = []
    for name in models.ROWS:
        say(f"float32: {name}")
        model = models.catalog(name, False)
        rows.append(Errors(name, {target: _errors(model, target) for target in TARGETS}))
    return rows


def _errors(model, target: str) -> dict[str, float] | str:
    try:
        _, report = files.ours(model, target=target, tolerance=ALLOWED)
    except Exception as error:  # reported; other layers go on
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return {a.runtime: float(f"{a.ratio:.3g}") for a in report.agreements}
