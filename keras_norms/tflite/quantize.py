"""Quantizes a float32 `.tflite` file and keeps its norms right."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from keras_norms.tflite import engine, measure
from keras_norms.tflite.choice import choose
from keras_norms.tflite.errors import ConversionError
from keras_norms.tflite.flow import Flow
from keras_norms.tflite.halves import halve
from keras_norms.tflite.measure import Distance
from keras_norms.tflite.norms import Norm
from keras_norms.tflite.plan import WEIGHTED, between, plan
from keras_norms.tflite.probe import Batch, probe
from keras_norms.tflite.samples import doubts, first, stressed

MODES = ("float16", "dynamic", "int8", "int16x8")
STATIC = ("int8", "int16x8")
KEEP = ("auto", "float", "quantized")

# Samples that files are compared on.
COMPARED = 16


@dataclass(frozen=True)
class Choice:
    """What became of one norm.

    Attributes:
        path: of the Keras layer.
        numbers: "float32", "int8" or "int16".
        why: the reason, with its number.
        calibration, stress: its result's distance from the float32 file's, on the samples and on
            the same at varying gain. None without samples, and within a loop.
    """

    path: str
    numbers: str
    why: str
    calibration: Distance | None = None
    stress: Distance | None = None


@dataclass(frozen=True)
class Quantized:
    """Attributes:
    content: the bytes of the file. Its inputs and outputs are float32.
    mode: as it was asked for.
    norms: one choice each.
    calibration, stress: the distance of each output by name, as in `Choice`, if there are samples.
    trials: how many files were made to choose.
    warnings: what should make a reader doubt the file.
    """

    content: bytes
    mode: str
    norms: tuple[Choice, ...]
    calibration: dict[str, Distance]
    stress: dict[str, Distance]
    trials: int
    warnings: tuple[str, ...]

    @property
    def distances(self) -> tuple[tuple[str, str, Distance], ...]:
        """All that was measured: where, on which samples, and how far it is."""
        found = [
            (f"output {name}", kind, of)
            for kind, by_name in (("calibration", self.calibration), ("stress", self.stress))
            for name, of in by_name.items()
        ]
        for choice in self.norms:
            pairs = (("calibration", choice.calibration), ("stress", choice.stress))
            found += [(choice.path, kind, of) for kind, of in pairs if of is not None]
        return tuple(found)


def quantize(
    content: bytes,
    mode: str,
    *,
    norms: Sequence[Norm] = (),
    samples: Sequence[Batch] | None = None,
    keep: str = "auto",
) -> Quantized:
    """Quantizes a file.

    Args:
        content: the bytes of a float32 file with one signature.
        mode: "float16" (constants in float16, computed in float32), "dynamic" (weights in int8),
            "int8" (all in int8) or "int16x8" (activations in int16, weights in int8).
        norms: the norms in the file.
        samples: batches by input name, as `samples.batches` makes them; needed for "int8" and
            "int16x8", whose ranges are those of all of them; else only for measuring.
        keep: for "int8" and "int16x8": "float" leaves all norms in float32, "quantized" none, and
            "auto" those where it is worth more than 3 dB at the outputs, on the samples or on the
            same samples at varying gain.

    Returns: the file, what became of its norms, and what it measured.
    Raises:
        ValueError: if an argument is wrong, or samples are missing.
        ConversionError: a ValueError, if sizes of the file are not fixed, it holds a loop, or it
            cannot be run.
    """
    flow = _check(content, mode, norms, samples, keep)
    work = _Work(content, mode, tuple(norms), flow, samples)
    if mode not in STATIC:
        made = halve(content) if mode == "float16" else work.dynamic()
        why = {norm.path: f"{mode} leaves norms in float32" for norm in norms}
        floats = set(why)
    else:
        made, floats, why = work.kept(keep)
    return work.result(made, floats, why)


class _Work:
    """One file that is being quantized: what is known of it, and the files made of it so far."""

    def __init__(self, content, mode, norms, flow, samples):
        self.content, self.mode, self.norms, self.flow = content, mode, norms, flow
        self.warnings = list(doubts(_joined(samples))) if samples else []
        self.trials = 0
        self.batches: list[Batch] = []
        self.sets: dict[str, slice] = {}  # of the batches
        if samples:
            few = first(samples, COMPARED)
            self.batches = few + stressed(few)
            self.sets = {"calibration": slice(len(few)), "stress": slice(len(few), None)}
            self.want = probe(content, self.batches)
        self.ranges: dict[str, tuple[float, float]] = {}
        if mode in STATIC:
            self.ranges = probe(content, samples, ranges=True).ranges
            wrong = [n for n, pair in self.ranges.items() if not np.all(np.isfinite(pair))]
            if wrong:
                raise ConversionError(
                    "The float32 file must compute finite values on the representative data. "
                    f"Received: NaN or infinity in {wrong[0]!r} and {len(wrong) - 1} more tensors"
                )

    def dynamic(self) -> bytes:
        inside = {name for norm in self.norms for name in norm.nodes}
        kinds = {
            node.output: "dynamic"
            for node in self.flow.all_nodes
            if node.op in WEIGHTED and node.output not in inside
        }
        if len(self.flow.all_nodes) > len(self.flow.nodes):
            self.warnings.append("Weights within loops stay float32: `unroll=True` writes none.")
        return engine.apply(self.content, kinds, {})

    def static(self, floats: set[str]) -> bytes:
        """The file with the norms of these paths in float32."""
        self.trials += 1
        kinds = plan(self.flow, self.norms, floats, self.mode)
        return engine.apply(self.content, kinds, self.ranges)

    def kept(self, keep: str) -> tuple[bytes, set[str], dict[str, str]]:
        """The file, the paths of its float32 norms, and why by path."""
        fused = {node.output for node in self.flow.nodes if node.fused}
        fixed = {norm.path for norm in self.norms if fused.intersection(norm.nodes)}
        why = dict.fromkeys(fixed, "a fused operation computes in float32")
        paths = [norm.path for norm in self.norms if norm.path not in fixed]
        if keep == "auto" and paths:
            chosen = choose(paths, lambda some: self.static(fixed | some), self.run)
            return chosen.content, fixed | chosen.floats, why | chosen.why
        floats = {*fixed, *paths} if keep == "float" else fixed
        return self.static(floats), floats, why | dict.fromkeys(paths, f"norms={keep!r}")

    def run(self, content: bytes) -> dict[str, dict[str, Distance]]:
        """By set, the distance of each output."""
        if not self.batches:
            return {}
        got = probe(content, self.batches)
        return {name: measure.outputs(self.want, got, part) for name, part in self.sets.items()}

    def within(self, content: bytes) -> dict[str, dict[str, Distance]]:
        """By set and by tensor, the distance of each norm's result.

        LiteRT gives no look into a loop, and none at all into some files that have one.
        """
        if not (self.batches and self.norms) or len(self.flow.all_nodes) > len(self.flow.nodes):
            return {}
        results = {norm.leaves for norm in self.norms}
        want, got = (probe(c, self.batches, tensors=results) for c in (self.content, content))
        return {name: measure.tensors(want, got, part) for name, part in self.sets.items()}

    def result(self, made: bytes, floats: set[str], why: dict[str, str]) -> Quantized:
        found, within = self.run(made), self.within(made)
        integers = {"int8": "int8", "int16x8": "int16"}
        return Quantized(
            content=made,
            mode=self.mode,
            norms=tuple(
                Choice(
                    path=norm.path,
                    numbers="float32" if norm.path in floats else integers[self.mode],
                    why=why[norm.path],
                    **{name: of[norm.leaves] for name, of in within.items()},
                )
                for norm in self.norms
            ),
            calibration=found.get("calibration", {}),
            stress=found.get("stress", {}),
            trials=self.trials,
            warnings=tuple(self.warnings),
        )


def _joined(samples: Sequence[Batch]) -> Batch:
    return {name: np.concatenate([batch[name] for batch in samples]) for name in samples[0]}


def _check(content, mode, norms, samples, keep) -> Flow:
    if mode not in MODES:
        raise ValueError(f"`mode` must be one of {', '.join(MODES)}. Received: {mode!r}")
    if keep not in KEEP:
        raise ValueError(f"`keep` must be one of {', '.join(KEEP)}. Received: {keep!r}")
    flow = Flow(content)
    if mode in STATIC:
        _check_static(flow, mode)
        if not samples:
            raise ValueError(
                f"{mode!r} needs `representative_data`: samples as they come in use, on which the "
                f"ranges of all tensors are measured. Received: {samples!r}"
            )
    names = {name for node in flow.all_nodes for name in node.outputs} | set(flow.inputs)
    for norm in norms:
        missing = {norm.enters, norm.leaves, *norm.nodes} - names
        if missing:
            raise ValueError(
                "The tensors of a norm must be in the file. "
                f"Received: {norm.path!r} with {sorted(missing)}"
            )
        missed = between(flow, set(norm.nodes))
        if missed:
            raise ValueError(
                "All operations between those of a norm must be the norm's. "
                f"Received: {norm.path!r} without {sorted(missed)}"
            )
    for batch in samples or ():
        given = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
        if given != flow.signature:
            raise ValueError(
                "Every batch must have the sizes and types of the file's inputs. "
                f"Received: {given} for {flow.signature}"
            )
    return flow


def _check_static(flow: Flow, mode: str) -> None:
    if flow.dynamic:
        raise ConversionError(
            f"{mode!r} needs fixed sizes. Received: a file in which {flow.dynamic[0]!r} and "
            f"{len(flow.dynamic) - 1} more tensors have a size that is known only when it runs"
        )
    if any(node.op == "WHILE" for node in flow.all_nodes):
        raise ConversionError(
            f"{mode!r} needs a file without loops: LiteRT gives no ranges of the tensors within "
            "one. `unroll=True` on recurrent layers writes none."
        )
    if flow.repeated:
        raise ConversionError(
            f"Tensors must have names of their own. Received: several named {flow.repeated[0]!r}"
        )
