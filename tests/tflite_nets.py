"""Small float32 `.tflite` files with norms in them, and where in them the norms are.

They are written by plain TensorFlow functions, so that nothing under test makes them. Every norm
computes within a name scope of its own, and its operations are found by that.
"""

import functools
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from keras_norms.tflite.flow import Flow
from keras_norms.tflite.norms import Norm


class Weights:
    """Random numbers in the order they are asked for."""

    def __init__(self, seed: int = 0):
        self.draw = np.random.default_rng(seed)

    def kernel(self, *shape):
        fan_in = np.prod(shape[:-1])
        return tf.constant(self.draw.normal(0, fan_in**-0.5, shape), "float32")

    def depthwise(self, size, channels):
        return tf.constant(self.draw.normal(0, 1 / size, (size, size, channels, 1)), "float32")

    def bias(self, channels):
        return tf.constant(self.draw.normal(0, 0.1, channels), "float32")

    def gamma(self, *shape):
        return tf.constant(self.draw.uniform(0.5, 1.5, shape), "float32")


def centred(x, w, mean: Callable, gamma_shape, epsilon=1e-3):
    """y = (x - mean) * rsqrt(mean((x - mean)^2) + epsilon) * gamma + beta, by any mean."""
    d = x - mean(x)
    y = d * tf.math.rsqrt(mean(d * d) + epsilon)
    return y * w.gamma(*gamma_shape) + tf.reshape(w.bias(int(np.prod(gamma_shape))), gamma_shape)


def over(*axes):
    return lambda t: tf.reduce_mean(t, axes, keepdims=True)


def group_mean(groups, channels):
    """Over space and the channels of a group: a 1x1 convolution instead of a RESHAPE."""
    size = channels // groups
    matrix = np.kron(np.eye(groups), np.full((size, size), 1 / size))
    matrix = matrix.reshape(1, 1, channels, channels).astype("float32")
    return lambda t: tf.nn.conv2d(tf.reduce_mean(t, (1, 2), keepdims=True), matrix, 1, "VALID")


def layer_norm(x, w):
    return centred(x, w, over(-1), x.shape[-1:])


def layer_norm_all(x, w):
    return centred(x, w, over(*range(1, len(x.shape))), x.shape[1:])


def group_norm(x, w):
    return centred(x, w, group_mean(8, x.shape[-1]), x.shape[-1:])


def instance_norm(x, w):
    return centred(x, w, over(1, 2), x.shape[-1:])


def rms_norm(x, w):
    return x * tf.math.rsqrt(over(-1)(x * x) + 1e-3) * w.gamma(x.shape[-1])


def unit_norm(x, w):
    del w
    return x * tf.math.rsqrt(tf.reduce_sum(x * x, -1, keepdims=True) + 1e-12)


def filter_response_norm(x, w):
    y = x * tf.math.rsqrt(over(1, 2)(x * x) + 1e-6) * w.gamma(x.shape[-1]) + w.bias(x.shape[-1])
    return tf.maximum(y, w.bias(x.shape[-1]))


def switchable_norm(x, w):
    """Of instance, layer and batch statistics, mixed by weights that are constants here."""
    a, b = w.draw.dirichlet((1, 1, 1)), w.draw.dirichlet((1, 1, 1))
    mean_i = over(1, 2)(x)
    d = x - mean_i
    variance_i = over(1, 2)(d * d)
    mean_l = over(-1)(mean_i)
    e = mean_i - mean_l
    variance_l = over(-1)(variance_i + e * e)
    mean = a[0] * mean_i + a[1] * mean_l + a[2] * w.bias(x.shape[-1])
    variance = b[0] * variance_i + b[1] * variance_l + b[2] * w.gamma(x.shape[-1])
    y = (x - mean) * tf.math.rsqrt(variance + 1e-3)
    return y * w.gamma(x.shape[-1]) + w.bias(x.shape[-1])


NORMS = {
    "layer": layer_norm,
    "layer-all": layer_norm_all,
    "group": group_norm,
    "instance": instance_norm,
    "rms": rms_norm,
    "unit": unit_norm,
    "frn": filter_response_norm,
    "switchable": switchable_norm,
}


class Scoped:
    """Calls a norm within a numbered scope, and remembers which there were."""

    def __init__(self, norm: Callable | None, w: Weights):
        self.norm, self.w, self.paths = norm, w, []

    def __call__(self, x):
        if self.norm is None:
            return x
        self.paths.append(f"norm_{len(self.paths)}")
        with tf.name_scope(self.paths[-1]):
            return self.norm(x, self.w)


def conv_net(norm, w, x):
    """Conv, norm, conv on (28, 28, 32)."""
    x = tf.nn.conv2d(x, w.kernel(3, 3, 32, 32), 1, "SAME", name="before") + w.bias(32)
    return tf.nn.conv2d(norm(x), w.kernel(3, 3, 32, 32), 1, "SAME", name="after") + w.bias(32)


def dense_net(norm, w, x):
    """Dense, norm, dense on (128, 256)."""
    x = dense(x, w, x.shape[-1], "before")
    return dense(norm(x), w, x.shape[-1], "after")


def dense(x, w, units, name):
    *outer, channels = x.shape
    y = tf.matmul(tf.reshape(x, (-1, channels)), w.kernel(channels, units), name=name)
    return tf.reshape(y + w.bias(units), (*outer, units))


def mobile_block(norm, w, x):
    """Two inverted residuals on (14, 14, 24)."""
    for _ in range(2):
        y = tf.nn.conv2d(x, w.kernel(1, 1, 24, 48), 1, "SAME")
        y = tf.nn.relu6(norm(y))
        y = tf.nn.depthwise_conv2d(y, w.depthwise(3, 48), (1, 1, 1, 1), "SAME")
        y = tf.nn.relu6(norm(y))
        y = norm(tf.nn.conv2d(y, w.kernel(1, 1, 48, 24), 1, "SAME"))
        x = x + y
    return tf.reduce_mean(x, (1, 2)) @ w.kernel(24, 10)


def transformer(norm, w, x):
    """Two pre-norm blocks with one head on (32, 64)."""
    for _ in range(2):
        y = norm(x)
        q, k, v = (dense(y, w, 64, name) for name in "qkv")
        weights = tf.nn.softmax(tf.matmul(q, k, transpose_b=True) / 8)
        x = x + dense(tf.matmul(weights, v), w, 64, "out")
        y = tf.nn.relu(dense(norm(x), w, 128, "up"))
        x = x + dense(y, w, 64, "down")
    return dense(norm(x), w, 64, "head")


NETS = {
    "conv": (conv_net, (28, 28, 32)),
    "dense": (dense_net, (128, 256)),
    "tiny": (dense_net, (16, 64)),
    "mobile": (mobile_block, (14, 14, 24)),
    "transformer": (transformer, (32, 64)),
}


def stationary(kind: str, samples: int, seed: int) -> list[dict]:
    """N(0, 1), in batches of one."""
    draw = np.random.default_rng(seed)
    return [{"x": x[None]} for x in draw.normal(size=(samples, *NETS[kind][1])).astype("float32")]


def gain(kind: str, samples: int, seed: int) -> list[dict]:
    """Each with a gain from 0.1 to 10 and an offset of up to 1.5 standard deviations.

    With seed 1 the largest gain comes with the largest offsets, so that ranges that are measured on
    these hold all others.
    """
    draw = np.random.default_rng(seed)
    gains, offsets = 10 ** np.linspace(-1, 1, samples), np.linspace(-1.5, 1.5, samples)
    draw.shuffle(gains)
    draw.shuffle(offsets)
    if seed == 1:
        gains[:2], offsets[:2] = 10, (1.5, -1.5)
    return [
        {"x": ((batch["x"] + offset) * factor).astype("float32")}
        for batch, factor, offset in zip(
            stationary(kind, samples, seed + 1000), gains, offsets, strict=True
        )
    ]


@functools.cache
def net(kind: str, norm: str | None, seed: int = 0) -> tuple[bytes, list[Norm]]:
    """A float32 file of batch 1 with one input and one output, and its norms."""
    function, shape = NETS[kind]
    return written(function, shape, NORMS[norm] if norm else None, seed)


def written(function, shape, norm, seed=0) -> tuple[bytes, list[Norm]]:
    calls = []

    def call(x):
        w = Weights(seed)
        calls.append(Scoped(norm, w))
        return function(calls[-1], w, x)

    content = converted(call, tf.TensorSpec((1, *shape), "float32", name="x"))
    return content, found(content, calls[-1].paths)


def converted(function: Callable, *specs: tf.TensorSpec) -> bytes:
    """A file of a function of tensors; an output that is not in a dict is named "y"."""

    def call(*tensors):
        result = function(*tensors)
        return result if isinstance(result, dict) else {"y": result}

    module = tf.Module()
    module.call = tf.function(call, input_signature=specs)
    concrete = module.call.get_concrete_function()
    return tf.lite.TFLiteConverter.from_concrete_functions([concrete], module).convert()


def found(content: bytes, paths: list[str]) -> list[Norm]:
    """The norms in a file by the scopes in its tensors' names.

    The converter folds a scale into the matrix that follows and joins the names of both. Such an
    operation is not the norm's, but a 1x1 convolution with nothing but the scope's names is.
    """
    graph = Flow(content)
    norms = []
    for path in paths:
        nodes = [node for node in graph.nodes if _belongs(node, path)]
        names = [node.output for node in nodes]
        if not names:
            continue  # all of it was folded
        enters = next(n for node in nodes for n in node.inputs if n not in names)
        norms.append(Norm(path, "centred", enters, names[-1], tuple(names)))
    return norms


def _belongs(node, path: str) -> bool:
    # The converter appends a number to a name that is there twice.
    parts = [part for part in node.output.split(";") if part and not part.isdigit()]
    own = [part.startswith(f"{path}/") for part in parts]
    if node.op in ("CONV_2D", "FULLY_CONNECTED"):
        return all(own)
    # A result of the file has another name.
    return any(own) or any(name.startswith(f"{path}/") for name in node.constants)
