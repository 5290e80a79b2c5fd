"""Runs `.tflite` files on this machine: LiteRT and TensorFlow's own interpreter."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from keras_norms.tflite import custom_op
from keras_norms.tflite.signature import Input, fits, is_array, per_input
from keras_norms.tflite.steps import whole


@dataclass(frozen=True)
class Runtime:
    """One way of running a file.

    Attributes:
        interpreter: "LiteRT" or "tf.lite".
        xnnpack: whether XNNPACK's kernels run what they can, or LiteRT's own run everything.
        threads: int > 0.
    """

    interpreter: str = "LiteRT"
    xnnpack: bool = True
    threads: int = 1

    def __str__(self) -> str:
        kernels = "XNNPACK" if self.xnnpack else "built-in kernels"
        return f"{self.interpreter}, {kernels}, {self.threads} thread{'s' * (self.threads > 1)}"

    def open(self, content: bytes, delegates: Sequence[Any] = ()) -> Any:
        """An interpreter of the file."""
        if self.interpreter == "LiteRT":
            interpreter, resolvers = litert()
        else:
            import tensorflow as tf

            interpreter = tf.lite.Interpreter
            resolvers = tf.lite.experimental.OpResolverType
        resolver = "BUILTIN" if self.xnnpack else "BUILTIN_WITHOUT_DEFAULT_DELEGATES"
        with warnings.catch_warnings():  # TensorFlow's announces that LiteRT's will take its place
            warnings.simplefilter("ignore")
            return interpreter(
                model_content=content,
                num_threads=self.threads,
                experimental_op_resolver_type=getattr(resolvers, resolver),
                experimental_delegates=list(delegates) or None,
            )


RUNTIMES = (
    Runtime(),
    Runtime(threads=2),
    Runtime(xnnpack=False),
    Runtime(xnnpack=False, threads=2),
    Runtime("tf.lite"),
)


def litert() -> tuple[type, type]:
    """LiteRT's interpreter and its choice of kernels."""
    try:
        from ai_edge_litert.interpreter import Interpreter, OpResolverType
    except ImportError as error:
        raise ImportError(
            "Running a .tflite file needs LiteRT, which is not installed: "
            'pip install "keras-norms[tflite]". (`verify=False` writes a file without running it.)'
        ) from error
    return Interpreter, OpResolverType


def version() -> str:
    return f"LiteRT {metadata.version('ai-edge-litert')}"


def run(
    path: str | os.PathLike, data: Any, *, runtime: Runtime | None = None, delegates: Sequence = ()
) -> Any:
    """Runs a `.tflite` file on any number of samples.

    Args:
        path: the file.
        data: `(samples, ...)`, an array for a file of one input, else a dict by input name; or a
            tf.data.Dataset of such or of `(x, y)`, as for `fit`. The number of samples is a
            multiple of the batch size that the file was written with.
        runtime: None is LiteRT with XNNPACK in one thread.
        delegates: for operators that LiteRT does not have. That of `KerasNorms>Normalize` need not
            be given.

    Returns: `(samples, ...)`, an array from a file of one output, else a dict by output name.
    Raises: ValueError, if the samples do not fit the file; RuntimeError, with the command that
        builds it, if the file needs the custom op and no delegate is given.
    """
    with open(path, "rb") as file:
        content = file.read()
    delegates = [*_ours(content, delegates), *delegates]
    outputs = run_content(content, data, runtime or Runtime(), delegates)
    return outputs if len(outputs) > 1 else next(iter(outputs.values()))


def _ours(content: bytes, given: Sequence[Any]) -> list[Any]:
    """The delegate of the custom op, where a file needs it and it is not among those given.

    It comes first: most others refuse a graph with an operator that nobody has claimed.
    """
    if not custom_op.needed(content) or any(map(custom_op.is_delegate, given)):
        return []
    try:
        return [custom_op.delegate()]
    except RuntimeError:
        if given:  # which may have it
            return []
        raise


def run_content(
    content: bytes, data: Any, runtime: Runtime, delegates: Sequence = ()
) -> dict[str, np.ndarray]:
    """The same of a file's bytes; always a dict."""
    runner = runtime.open(content, delegates).get_signature_runner()
    details = runner.get_input_details()
    inputs = [Input(n, tuple(_sizes(d)), np.dtype(d["dtype"]).name) for n, d in details.items()]
    data = whole(data, inputs, ordered=False)
    arrays = per_input(data, list(details), "data", one=is_array, ordered=False)
    arrays = {n: np.asarray(a).astype(details[n]["dtype"]) for n, a in arrays.items()}
    batches = set()
    for name, array in arrays.items():
        batch, *rest = _sizes(details[name])
        batches.add((batch or 1, len(array) if array.ndim else 0))
        if array.ndim == 0 or not fits(array.shape[1:], rest):
            raise ValueError(
                f"`data` must hold samples of shape {tuple(rest)} for the input {name!r}. "
                f"Received: an array of shape {array.shape}"
            )
    (batch, samples), *others = batches
    if others or not samples or samples % batch:
        raise ValueError(
            f"`data` must hold the same number of samples for every input, a multiple of {batch}. "
            f"Received: { {n: len(a) for n, a in arrays.items()} }"
        )
    return in_batches(lambda b: runner(**b), arrays, batch)


def _sizes(detail: Mapping[str, Any]) -> list[int | None]:
    """An input's sizes; None where any is taken."""
    signature = detail["shape_signature"]
    sizes = signature if len(signature) else detail["shape"]
    return [None if size < 0 else int(size) for size in sizes]


def in_batches(
    function: Callable[[dict], dict], arrays: dict[str, np.ndarray], batch: int
) -> dict[str, np.ndarray]:
    """Applies a function of one batch to all samples and joins what it gives."""
    samples = len(next(iter(arrays.values())))
    parts = [
        function({n: a[k : k + batch] for n, a in arrays.items()}) for k in range(0, samples, batch)
    ]
    return {n: np.concatenate([np.atleast_1d(part[n]) for part in parts]) for n in parts[0]}
