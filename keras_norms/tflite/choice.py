"""Which norms of a file stay float32: found by measuring files in which they do and do not."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.measure import Distance

# What quantized norms may cost together at the outputs, in dB.
COST = 3.0
# How many files may be made to find out.
TRIALS = 24

Distances = dict[str, dict[str, Distance]]  # by set of samples and by output


@dataclass(frozen=True)
class Chosen:
    """The file, the norms in it that are float32, and by norm why."""

    content: bytes
    floats: frozenset[str]
    why: dict[str, str]


def choose(
    paths: Sequence[str],
    make: Callable[[frozenset[str]], bytes],
    run: Callable[[bytes], Distances],
) -> Chosen:
    """Quantizes as many norms as cost no more than 3 dB together.

    All are tried at once, then either half, and so on down to single ones, from the end: a norm
    behind a norm has less to bear. For n norms that is two files, or up to 2 n, and never more than
    `TRIALS`; norms that were not tried by then stay float32.

    Args:
        paths: of the norms, in the order they are run.
        make: writes the file with some of them in float32.
        run: measures a file.
    """
    best, floats = make(frozenset(paths)), frozenset(paths)
    reference = run(best)
    if not any(reference.values()):
        why = dict.fromkeys(paths, "there is no output of floats to measure")
        return Chosen(best, floats, why)
    why: dict[str, str] = {}
    trials = 1

    def visit(group: Sequence[str]) -> None:
        nonlocal best, floats, trials
        if trials >= TRIALS:
            why.update(dict.fromkeys(group, f"not tried, after {TRIALS} files"))
            return
        made = make(floats - set(group))
        trials += 1
        lost = _cost(reference, made, run)
        if lost <= COST:
            best, floats = made, floats - set(group)
            also = f" with {len(group) - 1} more" if len(group) > 1 else ""
            why.update(dict.fromkeys(group, f"quantized{also} it costs {max(lost, 0):.1f} dB"))
        elif len(group) > 1:
            half = len(group) // 2
            visit(group[half:])
            visit(group[:half])
        elif lost < math.inf:
            why[group[0]] = f"quantized it would cost {lost:.1f} dB"
        else:
            why[group[0]] = "LiteRT cannot run the file in which it is quantized"

    visit(paths)
    return Chosen(best, floats, why)


def _cost(reference: Distances, content: bytes, run: Callable[[bytes], Distances]) -> float:
    """What a file loses against another, in dB, at the output and on the set where it is most."""
    try:
        got = run(content)
    except ConversionError:
        return math.inf
    return max(
        want.sqnr - got[name][output].sqnr
        for name, outputs in reference.items()
        for output, want in outputs.items()
    )
