"""What a conversion has to say about the file it wrote."""

import json
from collections import Counter
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Report:
    """A written `.tflite` file. `print(report)` shows a table.

    Attributes:
        path: where the file is.
        size: bytes.
        ops: how often each operation stands in the file, most frequent first.
        rank_above_4: tensors with more than four dimensions, which mobile GPUs refuse.
        layers: the keras_norms layers of the model, by path, with the form each was written in.
        verified: whether the file was run and compared with the model. If not, the rest is None.
        max_error: largest difference from Keras, in the output that agrees worst.
        max_output: largest value of that output in Keras.
        tolerance: the allowed max_error / max_output.
        samples: how many samples were compared.
        runtime: what ran the file.
    """

    path: str
    size: int
    ops: dict[str, int]
    rank_above_4: int
    layers: dict[str, str]
    verified: bool
    max_error: float | None = None
    max_output: float | None = None
    tolerance: float | None = None
    samples: int | None = None
    runtime: str | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    def __str__(self) -> str:
        forms = Counter(self.layers.values())
        rows = [
            ("file", self.path),
            ("size", f"{self.size:,} bytes"),
            ("numbers", "float32"),
            ("operations", f"{sum(self.ops.values())}"),
            *((f"  {name}", f"{count}") for name, count in self.ops.items()),
            ("tensors above rank 4", f"{self.rank_above_4}"),
            ("keras_norms layers", f"{len(self.layers)}"),
            *((f"  in {form} form", f"{count}") for form, count in forms.items()),
        ]
        if self.max_error is not None:
            relative = self.max_error / (self.max_output or 1)
            rows += [
                ("compared with Keras", f"{self.samples} samples, {self.runtime}"),
                ("  largest difference", f"{self.max_error:.2g}"),
                ("  largest output", f"{self.max_output:.4g}"),
                ("  ratio", f"{relative:.1e} (allowed: {self.tolerance:g})"),
            ]
        else:
            rows += [("compared with Keras", "no")]
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in rows)
