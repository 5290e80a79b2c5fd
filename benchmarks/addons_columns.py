"""The same rows in tensorflow-addons and the last release of TensorFlow that it runs on.

Group, instance and filter response normalization are those of tensorflow-addons, layer and batch
normalization those of that release's own Keras. It runs in the environment that `make test-peers`
makes.
"""

import warnings
from collections.abc import Callable

import tensorflow as tf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it warns that it is no longer maintained
    import tensorflow_addons as tfa

from benchmarks.cases import Case
from benchmarks.steps import step

NAMES = ("addons graph", "addons XLA")


def set_up(threads: int) -> str:
    tf.get_logger().setLevel("ERROR")  # each column is traced anew, which is meant
    tf.config.threading.set_intra_op_parallelism_threads(threads)
    return f"{tfa.__version__} on TensorFlow {tf.__version__}"


def data(case: Case) -> tuple[tf.Tensor, tf.Tensor]:
    """x and dy: standard normal; the values need not be those of the other columns."""
    tf.random.set_seed(0)
    return tuple(tf.cast(tf.random.normal(case.shape), case.dtype) for _ in range(2))


def column(name: str, case: Case, passes: str, x: tf.Tensor, dy: tf.Tensor) -> Callable:
    """A function that computes the row as `tf_columns.column` does."""
    layer = _layer(case)
    layer.build(tf.TensorShape(case.shape))
    training = {"training": case.training} if case.layer == "BatchNormalization" else {}
    activation = tf.keras.activations.get(case.activation)
    compute = step(lambda x: activation(layer(x, **training)), layer.trainable_weights, passes)
    compute = tf.function(compute, jit_compile=name == "addons XLA", autograph=False)
    return lambda: compute(x, dy)


def _layer(case: Case) -> tf.keras.layers.Layer:
    match case.layer:
        case "GroupNormalization" | "InstanceNormalization" | "FilterResponseNormalization":
            return getattr(tfa.layers, case.layer)(**case.arguments)
        case "LayerNormalization" | "BatchNormalization":
            return getattr(tf.keras.layers, case.layer)(**case.arguments)
    raise NotImplementedError("Neither tensorflow-addons nor its Keras has such a layer.")
