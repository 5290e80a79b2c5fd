"""Our layers and Keras', as a user of TensorFlow calls them; and the copy that bounds them."""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

import keras_norms
from benchmarks.cases import BOTH, Case

# name: (whose layer, kernel of ours, None = eager / False = graph / True = XLA)
COLUMNS = {
    "ours": ("keras_norms", "fused", False),
    "ours XLA": ("keras_norms", "fused", True),
    "ours portable": ("keras_norms", "portable", False),
    "Keras eager": ("keras", None, None),
    "Keras graph": ("keras", None, False),
    "Keras XLA": ("keras", None, True),
}
TWO_THREADS_PAY = 1 << 20  # bytes; below, handing over a half costs more than copying it


def allocator() -> str:
    """Where TensorFlow's memory comes from: it decides whether an output costs page faults."""
    try:
        tf.config.experimental.get_memory_info("CPU:0")
    except ValueError:
        return "malloc"
    return "pool (oneDNN)"


def data(case: Case) -> tuple[tf.Tensor, tf.Tensor]:
    """x and dy: standard normal, the same for every column."""
    rng = np.random.default_rng(0)
    return tuple(tf.cast(rng.standard_normal(case.shape, "float32"), case.dtype) for _ in range(2))


def column(name: str, case: Case, passes: str, x: tf.Tensor, dy: tf.Tensor) -> Callable:
    """A function that computes the row: `(y,)`, or `(y, dx, *parameter gradients)`.

    It is called once, so that it is traced under its kernel; raises what that raises.
    """
    whose, kernel, jit = COLUMNS[name]
    layer = _layer(whose, case)
    layer.build(case.shape)
    step = _step(layer, case, passes)
    if jit is not None:
        step = tf.function(step, jit_compile=jit, autograph=False)
    with _traced_under(kernel):
        step(x, dy)
    return lambda: step(x, dy)


def copy(x: tf.Tensor, threads: int) -> Callable:
    """Reads as many bytes as x has and writes as many, to memory that is there already."""
    source = x.numpy().reshape(-1).view("uint8")
    target = np.ones_like(source)
    if threads == 1 or source.nbytes < TWO_THREADS_PAY:
        return lambda: np.copyto(target, source)
    pool = ThreadPoolExecutor(threads)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))
    return lambda: list(pool.map(lambda part: np.copyto(*part), parts))


@contextlib.contextmanager
def _traced_under(kernel: str | None):
    if kernel is None:
        yield
        return
    before = keras_norms.get_kernel()
    keras_norms.set_kernel(kernel)
    try:
        yield
    finally:
        keras_norms.set_kernel(before)


def _layer(whose: str, case: Case) -> keras.Layer:
    if whose == "keras_norms":
        return getattr(keras_norms, case.layer)(**case.arguments)
    if case.layer == "InstanceNormalization":  # Keras' own way to write it
        return keras.layers.GroupNormalization(groups=-1, **case.arguments)
    return getattr(keras.layers, case.layer)(**case.arguments)


def _step(layer: keras.Layer, case: Case, passes: str) -> Callable:
    training = {"training": case.training} if case.layer == "BatchNormalization" else {}

    def forward(x, dy):
        return (layer(x, **training),)

    def both(x, dy):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **training)
        sources = [x, *(weight.value for weight in layer.trainable_weights)]
        return (y, *tape.gradient(y, sources, output_gradients=dy))

    return both if passes == BOTH else forward
