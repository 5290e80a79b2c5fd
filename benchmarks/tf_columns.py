"""Our layers and Keras', as a user of TensorFlow calls them; and the copy that bounds them.

So that every column computes the same, x, dy and the weights are those of every other.
"""

import contextlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

import keras_norms
from benchmarks import layers, models
from benchmarks.cases import Case
from benchmarks.steps import step

# name: (whose layer, kernel of ours, None = eager / False = graph / True = XLA)
COLUMNS = {
    "ours": ("keras_norms", "fused", False),
    "ours XLA": ("keras_norms", "fused", True),
    "ours portable": ("keras_norms", "portable", False),
    "Keras eager": ("keras", None, None),
    "Keras graph": ("keras", None, False),
    "Keras XLA": ("keras", None, True),
}
OF_MODELS = ("ours", "ours XLA", "Keras graph", "Keras XLA")
TWO_THREADS_PAY = 1 << 20  # bytes; below, handing over a half costs more than copying it


def allocator() -> str:
    """Where TensorFlow's memory comes from: it decides whether an output costs page faults."""
    try:
        tf.config.experimental.get_memory_info("CPU:0")
    except ValueError:
        return "malloc"
    return "pool (oneDNN)"


def names(case: Case) -> tuple[str, ...]:
    """The columns of a case's rows."""
    return OF_MODELS if case.model else tuple(COLUMNS)


def data(case: Case) -> tuple:
    """x and dy, of a model x and its labels: standard normal, the same for every column.

    x is a list of tensors for a layer that takes more than one.
    """
    if case.model:
        return models.data(case)
    rng = np.random.default_rng(0)
    count = layers.inputs(case)
    *x, dy = (
        tf.cast(rng.standard_normal(case.shape, "float32"), case.dtype) for _ in range(count + 1)
    )
    return x if count > 1 else x[0], dy


def column(name: str, case: Case, passes: str, x, dy: tf.Tensor) -> Callable:
    """A function that computes the row: `(y,)`, or `(y, *gradients of x, *of the parameters)`.

    Of a model it is a training step, which returns the loss. It is called once, so that it is
    traced under its kernel; raises what that raises.
    """
    whose, kernel, jit = COLUMNS[name]
    compute = models.train_step(whose, case) if case.model else _layer_step(whose, case, passes)
    if jit is not None:
        compute = tf.function(compute, jit_compile=jit, autograph=False)
    with _traced_under(kernel):
        compute(x, dy)
    return lambda: compute(x, dy)


def forward(name: str, case: Case) -> Callable:
    """The layer as a function of x, compiled by itself: a tape outside of it sees what it keeps."""
    whose, kernel, jit = COLUMNS[name]
    compute = _in_turn(_built(whose, case), case)
    if jit is not None:
        compute = tf.function(compute, jit_compile=jit, autograph=False)

    def call(x):
        with _traced_under(kernel):
            return compute(x)

    return call


def copy(x: tf.Tensor | list[tf.Tensor], threads: int) -> Callable:
    """Reads as many bytes as (the first) x has and writes as many, to memory that is there."""
    source = tf.nest.flatten(x)[0].numpy().reshape(-1).view("uint8")
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


def _layer_step(whose: str, case: Case, passes: str) -> Callable:
    chain = _built(whose, case)
    variables = [weight.value for layer in chain for weight in layer.trainable_weights]
    return step(_in_turn(chain, case), variables, passes)


def _built(whose: str, case: Case) -> list:
    keras.utils.set_random_seed(0)  # for the layers whose weights begin at random
    chain = layers.layers(whose, case)
    count = layers.inputs(case)
    shape = [case.shape] * count if count > 1 else case.shape
    for layer in chain:
        layer.build(shape)
        shape = case.shape
    return chain


def _in_turn(chain: list, case: Case) -> Callable:
    def call(x):
        for layer in chain:
            x = layer(x, training=case.training)
        return x

    return call
