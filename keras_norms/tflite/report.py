"""What a conversion has to say about the file it wrote."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from keras_norms.tflite.measure import Distance
from keras_norms.tflite.norms import Norm
from keras_norms.tflite.quantize import Choice
from keras_norms.tflite.text import as_json, table
from keras_norms.tflite.verify import Agreement

NUMBERS = {
    None: "float32",
    "float16": "float32, weights of 16 bits",
    "dynamic": "float32, weights of 8 bits",
    "int8": "integers of 8 bits",
    "int16x8": "integers of 16 bits, weights of 8",
}


@dataclass(frozen=True)
class Report:
    """A written `.tflite` file. `print(report)` shows a table.

    Attributes:
        path: where the file is.
        size: bytes.
        target: what it was written for.
        quantize: the format of its numbers; None is float32.
        ops: how often each operation stands in the file, most frequent first.
        rank_above_4: tensors with more than four dimensions, which mobile GPUs refuse.
        norms: the model's norms, each with the form it was written in, and why.
        agreements: what each runtime computed beside Keras; none if it was not verified.
        tolerance: the allowed max_error / max_output; None for a quantized file.
        samples: how many samples were compared.
        notes: what else there is to know.
        choices: of a quantized file, which numbers each norm has, and why.
        distances: of a quantized file, how far each output and norm is from the float32 file's, on
            samples of its calibration and on the same, weaker by up to 10 and shifted ("stress").
    """

    path: str
    size: int
    target: str
    quantize: str | None
    ops: dict[str, int]
    rank_above_4: int
    norms: tuple[Norm, ...]
    agreements: tuple[Agreement, ...] = ()
    tolerance: float | None = None
    samples: int | None = None
    notes: tuple[str, ...] = ()
    choices: tuple[Choice, ...] = ()
    distances: tuple[tuple[str, str, Distance], ...] = ()

    @property
    def verified(self) -> bool:
        """Whether the file was run and compared with the model."""
        return bool(self.agreements)

    @property
    def worst(self) -> Agreement | None:
        """Of the runtime that agrees least."""
        return max(self.agreements, key=lambda a: a.ratio, default=None)

    @property
    def max_error(self) -> float | None:
        """The largest difference from Keras, in the output and runtime that agree worst."""
        return self.worst and self.worst.max_error

    @property
    def max_output(self) -> float | None:
        """The largest value of that output in Keras."""
        return self.worst and self.worst.max_output

    @property
    def sqnr(self) -> float | None:
        """The least of the runtimes' signal-to-noise ratios, in dB."""
        return min((a.sqnr for a in self.agreements if a.sqnr is not None), default=None)

    def to_json(self) -> str:
        return as_json(self)

    def to_markdown(self) -> str:
        """The same as tables of Markdown."""
        parts = [f"# {self.path}", _markdown(("", ""), self._rows()[1:])]
        if self.norms:
            rows = [(n.path, n.layer, n.form, n.why) for n in self.norms]
            parts += ["## Norms", _markdown(("norm", "layer", "form", "why"), rows)]
        if self.agreements:
            rows = [(a.runtime, _error(a), _decibels(a.sqnr)) for a in self.agreements]
            head = ("runtime", "largest difference / largest output", "SQNR")
            parts += [f"## Compared with Keras on {self.samples} samples", _markdown(head, rows)]
        if self.choices:
            rows = [(choice.path, choice.numbers, choice.why) for choice in self.choices]
            parts += ["## Numbers of the norms", _markdown(("norm", "numbers", "why"), rows)]
        if self.distances:
            rows = [
                (where, on, f"{d.sqnr:.1f} dB", f"{d.worst:.1f} dB", f"{d.max_error:.3g}")
                for where, on, d in self.distances
            ]
            head = ("at", "samples", "SQNR", "worst batch", "largest difference")
            parts += ["## Distance from the float32 file", _markdown(head, rows)]
        if self.notes:
            parts += ["## Notes", "\n".join(f"- {note}" for note in self.notes)]
        return "\n\n".join(parts) + "\n"

    def __str__(self) -> str:
        rows = self._rows()
        forms = Counter(norm.form for norm in self.norms)
        rows += [("norms", f"{len(self.norms)}")]
        rows += [(f"  {form}", f"{count}") for form, count in forms.items()]
        rows += [(f"  {n.path}", f"{n.form}: {n.why}") for n in self.norms if n.why]
        if self.agreements:
            rows.append(("compared with Keras", f"{self.samples} samples"))
            rows += [
                (f"  {a.runtime}", f"{_error(a)}, {_decibels(a.sqnr)}") for a in self.agreements
            ]
            if self.tolerance is not None:
                rows.append(("  allowed", f"{self.tolerance:g} of the largest output"))
        else:
            rows.append(("compared with Keras", "no"))
        for choice in self.choices:
            rows.append((f"  {choice.path}", f"{choice.numbers}: {choice.why}"))
        for where, on, d in self.distances:
            if where.startswith("output "):
                rows.append((f"{where}, {on}", f"{d.sqnr:.1f} dB (worst batch {d.worst:.1f})"))
        rows += [("note", note) for note in self.notes]
        return table(rows)

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("file", self.path),
            ("size", f"{self.size:,} bytes"),
            ("target", self.target),
            ("numbers", NUMBERS[self.quantize]),
            ("operations", f"{sum(self.ops.values())}"),
            *((f"  {name}", f"{count}") for name, count in self.ops.items()),
            ("tensors above rank 4", f"{self.rank_above_4}"),
        ]


def _error(agreement: Agreement) -> str:
    return f"{agreement.ratio:.1e}"


def _decibels(sqnr: float | None) -> str:
    return "exact" if sqnr is None else f"{sqnr:.1f} dB"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        f"| {' | '.join(str(c).strip().replace('|', chr(92) + '|') for c in row)} |"
        for row in lines
    )
