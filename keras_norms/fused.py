"""The compiled op: finds, checks and loads its library, and gives its ops their gradients.

The only room that knows the library. It is loaded once, when `keras_norms` is imported, because
XLA takes note of an op only up to the first compilation in the process. Gradients of first order
are ops too; those of higher order are TensorFlow's, of the same formulas.
"""

import ctypes
import functools
import sys

import keras
import numpy as np

from keras_norms import library

DTYPES = ("float16", "bfloat16", "float32", "float64")
# These modules stand on the Python stack when a trace is made for a file.
_EXPORTERS = ("keras.src.export", "tensorflow.python.saved_model", "tensorflow.lite.python")
_TOO_LATE = (
    "XLA compiled a function before `import keras_norms`, so it does not know the op: "
    "import keras_norms first."
)

_ops = None
_simd = None
_in_xla = False
why_not: str | None = None


def available() -> bool:
    """Whether the library is loaded."""
    return _ops is not None


def info() -> dict:
    """What `keras_norms.kernel_info()` says of the library."""
    path = library.library_path()
    record = library.read_record(path) or {}
    return {
        "fused": available(),
        "library": str(path) if path.is_file() else None,
        "tensorflow": record.get("tensorflow"),
        "devices": ("CPU", "XLA:CPU")[: 1 + _in_xla] if available() else (),
        "simd": _simd,
        "why_not": why_not,
    }


def unusable_here(x) -> str | None:
    """Why the op cannot serve this tensor where this line runs; None if it can."""
    if not tf.is_tensor(x) or isinstance(x, tf.RaggedTensor | tf.SparseTensor):
        return f"the input is no dense tensor of TensorFlow but {type(x).__name__}."
    if x.dtype.name not in DTYPES:
        return f"the op is for {', '.join(DTYPES)}; the input is {x.dtype.name}."
    if _gpu():
        return "TensorFlow sees a GPU and the op has no kernel for it yet."
    if tf.executing_eagerly():
        return None
    if not _in_xla and _traced_for_xla():
        return _TOO_LATE
    return None


def normalize(x, geometry, gamma, beta, epsilon, subtract_mean):
    """`KerasNorms>Normalize`: y, mean and variance."""
    high = float(np.float32(epsilon))
    return _ops.keras_norms_normalize(
        x=x,
        gamma=_or_empty(gamma, x),
        beta=_or_empty(beta, x),
        **_axes(geometry),
        groups=geometry.groups,
        epsilon=high,
        epsilon_low=epsilon - high,
        subtract_mean=subtract_mean,
        has_gamma=gamma is not None,
        has_beta=beta is not None,
    )


def scale_shift(x, geometry, center, scale, shift):
    """`KerasNorms>ScaleShift`: (x - center) * scale + shift."""
    return _ops.keras_norms_scale_shift(
        x=x,
        center=_or_empty(center, x),
        scale=scale,
        shift=_or_empty(shift, x),
        **_axes(geometry),
        has_center=center is not None,
        has_shift=shift is not None,
    )


def moments(x, geometry, subtract_mean=True):
    """`KerasNorms>Moments`: mean, residual (the exact mean is their sum) and variance."""
    return _ops.keras_norms_moments(
        x=x,
        U=_wide(x),
        **_axes(geometry),
        groups=geometry.groups,
        subtract_mean=subtract_mean,
    )


def _axes(geometry) -> dict:
    return {
        "sample_axes": geometry.samples,
        "before_axes": geometry.before,
        "channel_axes": geometry.channels,
    }


def _or_empty(parameter, x):
    if parameter is not None:
        return parameter
    return tf.constant([], _wide(x))


def _wide(x):
    """The type of parameters and statistics."""
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def exporting() -> bool:
    """Whether this trace is written to a file, which must hold built-in ops only."""
    if keras.backend.backend() != "tensorflow" or tf.executing_eagerly():
        return False
    frame = sys._getframe(1)
    while frame is not None:
        if (frame.f_globals.get("__name__") or "").startswith(_EXPORTERS):
            return True
        frame = frame.f_back
    return False


@functools.cache
def _gpu() -> bool:
    return bool(tf.config.list_physical_devices("GPU"))


def _traced_for_xla() -> bool:
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _xla_has_compiled() -> bool:
    """Whether XLA has taken note of its ops already: then those kernels are registered."""
    devices = [k.device_type for k in kernels.get_registered_kernels_for_op("AddV2").kernel]
    return any("XLA" in device and "JIT" in device for device in devices)


# ---- Gradients --------------------------------------------------------------------------------


def _attributes(op, *names) -> dict:
    return {n: op.get_attr(n) for n in ("sample_axes", "before_axes", "channel_axes", *names)}


_NORMALIZE = (
    *("groups", "epsilon", "epsilon_low"),
    *("subtract_mean", "has_gamma", "has_beta"),
)


def _normalize_gradient(op, dy, _dmean, _dvariance):
    x, gamma, _ = op.inputs
    _, mean, variance = op.outputs
    attributes = _attributes(op, *_NORMALIZE)
    dx, dgamma, dbeta = _ops.keras_norms_normalize_grad(
        dy=dy, x=x, gamma=gamma, mean=mean, variance=variance, **attributes
    )
    has = attributes["has_gamma"], attributes["has_beta"]
    return dx, dgamma if has[0] else None, dbeta if has[1] else None


def _moments_gradient(op, dmean, _dresidual, dvariance):
    mean, residual, _ = op.outputs
    if not op.get_attr("subtract_mean"):
        dmean = tf.zeros_like(dmean)  # the mean is the constant 0
    return _ops.keras_norms_moments_grad(
        x=op.inputs[0],
        mean=mean,
        residual=residual,
        dmean=dmean,
        dvariance=dvariance,
        **_attributes(op, "groups"),
    )


def _scale_shift_gradient(op, dy):
    x, center, scale, _ = op.inputs
    dx, dscale, dshift = _ops.keras_norms_scale_shift_grad(
        dy=dy, x=x, center=center, scale=scale, **_attributes(op, "has_center")
    )
    has_center, has_shift = op.get_attr("has_center"), op.get_attr("has_shift")
    return dx, -dshift * scale if has_center else None, dscale, dshift if has_shift else None


# The gradient ops again, of built-in ops: what their gradients, of second order, are taken of.


def _view(x, op, groups):
    """x as [n, s, g, d, t], in the statistics' dtype; and the shapes of parameters and means."""
    a = _attributes(op)
    first = a["sample_axes"] + a["before_axes"]
    shape = tf.shape(x, out_type=tf.int64)
    samples, before = shape[: a["sample_axes"]], shape[a["sample_axes"] : first]
    channels = shape[first : first + a["channel_axes"]]
    after = shape[first + a["channel_axes"] :]
    c = tf.reduce_prod(channels)
    g = c if groups is None else tf.constant(groups, tf.int64)
    sizes = [tf.reduce_prod(samples), tf.reduce_prod(before), g, c // g, tf.reduce_prod(after)]
    return tf.reshape(tf.cast(x, _wide(x)), sizes), sizes


_REDUCED = (1, 3, 4)


def _normalize_grad_formula(op, dy, x, gamma):
    groups = op.get_attr("groups")
    (view, sizes), (dy_view, _) = _view(x, op, groups), _view(dy, op, groups)
    if op.get_attr("subtract_mean"):
        # The rounded mean is a constant here: what it leaves is subtracted next.
        view -= tf.reshape(op.inputs[3], [sizes[0], 1, sizes[2], 1, 1])
        view -= tf.reduce_mean(view, _REDUCED, keepdims=True)
    epsilon = op.get_attr("epsilon") + op.get_attr("epsilon_low")
    rstd = tf.math.rsqrt(tf.reduce_mean(view * view, _REDUCED, keepdims=True) + epsilon)
    xhat, weighted = view * rstd, dy_view
    if op.get_attr("has_gamma"):
        weighted = dy_view * tf.reshape(gamma, [1, 1, sizes[2], sizes[3], 1])
    dx = weighted - xhat * tf.reduce_mean(weighted * xhat, _REDUCED, keepdims=True)
    if op.get_attr("subtract_mean"):
        dx -= tf.reduce_mean(weighted, _REDUCED, keepdims=True)
    dgamma = tf.reduce_sum(dy_view * xhat, (0, 1, 4))
    dbeta = tf.reduce_sum(dy_view, (0, 1, 4))
    return (
        tf.cast(tf.reshape(dx * rstd, tf.shape(x)), x.dtype),
        tf.reshape(dgamma, tf.shape(gamma)) if op.get_attr("has_gamma") else None,
        tf.reshape(dbeta, tf.shape(op.outputs[2])) if op.get_attr("has_beta") else None,
    )


def _moments_grad_formula(op, x, mean, dmean, dvariance):
    view, sizes = _view(x, op, op.get_attr("groups"))
    means = [sizes[0], 1, sizes[2], 1, 1]
    view = view - tf.reshape(mean, means) - tf.reshape(op.inputs[2], means)
    count = tf.cast(sizes[1] * sizes[3] * sizes[4], view.dtype)
    dx = (tf.reshape(dmean, means) + 2 * tf.reshape(dvariance, means) * view) / count
    return (tf.cast(tf.reshape(dx, tf.shape(x)), x.dtype),)


def _scale_shift_grad_formula(op, dy, x, center, scale):
    (view, sizes), (dy_view, _) = _view(x, op, None), _view(dy, op, None)
    channels = [sizes[0], 1, sizes[2], 1, 1]
    if op.get_attr("has_center"):
        view -= tf.reshape(center, channels)
    dx = dy_view * tf.reshape(scale, channels)
    dscale, dshift = (tf.reduce_sum(v, _REDUCED) for v in (dy_view * view, dy_view))
    shape = tf.shape(scale)
    dx = tf.cast(tf.reshape(dx, tf.shape(x)), x.dtype)
    return dx, tf.reshape(dscale, shape), tf.reshape(dshift, shape)


def _gradient_of(formula, *differentiable):
    """The gradient of an op, from a formula of its `differentiable` inputs."""

    def gradient(op, *upstream):
        inputs = [op.inputs[i] for i in differentiable]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = formula(op, *inputs)
        pairs = [(o, u) for o, u in zip(outputs, upstream, strict=True) if o is not None]
        targets, seeds = zip(*pairs, strict=True)
        found = dict(zip(differentiable, tape.gradient(targets, inputs, seeds), strict=True))
        return [found.get(i) for i in range(len(op.inputs))]

    return gradient


def _register_gradients():
    for name, gradient in {
        "Normalize": _normalize_gradient,
        "Moments": _moments_gradient,
        "ScaleShift": _scale_shift_gradient,
        "NormalizeGrad": _gradient_of(_normalize_grad_formula, 0, 1, 2),
        "MomentsGrad": _gradient_of(_moments_grad_formula, 0, 1, 3, 4),
        "ScaleShiftGrad": _gradient_of(_scale_shift_grad_formula, 0, 1, 2, 3),
    }.items():
        tf.RegisterGradient(f"KerasNorms>{name}")(gradient)


# ---- Loading ----------------------------------------------------------------------------------


def _load():
    global _ops, _simd, _in_xla, why_not
    path = library.library_path()
    why_not = library.refusal(path, tf.__version__)
    if why_not:
        return
    late = _xla_has_compiled()
    try:
        _ops = tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError) as error:
        why_not = f"{path} does not load: {str(error).splitlines()[0]} {library.CURE}"
        return
    _register_gradients()
    _in_xla = not late
    target = ctypes.CDLL(str(path)).keras_norms_simd_target
    target.restype = ctypes.c_char_p
    _simd = target().decode()


if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.framework import kernels
    from tensorflow.python.ops import control_flow_util

    _load()
else:
    why_not = f"the op is for Keras' TensorFlow backend; this is {keras.backend.backend()}."
