"""The gradients of the compiled ops.

Those of first order are ops too; those of higher order are TensorFlow's, of the same formulas.
`fused` imports this when there is a library, and hands its ops to `register`.
"""

import math

import tensorflow as tf

_ops = None


def _attributes(op, *names) -> dict:
    return {n: op.get_attr(n) for n in ("sample_axes", "before_axes", "channel_axes", *names)}


_NORMALIZE = (
    *("groups", "epsilon", "epsilon_low"),
    *("subtract_mean", "has_gamma", "has_beta", "activation"),
)


def _normalize_gradient(op, dy, _dmean, _dvariance):
    x, gamma, beta = op.inputs
    _, mean, variance = op.outputs
    attributes = _attributes(op, *_NORMALIZE)
    dx, dgamma, dbeta = _ops.keras_norms_normalize_grad(
        dy=dy,
        x=x,
        gamma=gamma,
        beta=_if_activated(op, beta),
        mean=mean,
        variance=variance,
        **attributes,
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
    x, center, scale, shift = op.inputs
    dx, dscale, dshift = _ops.keras_norms_scale_shift_grad(
        dy=dy,
        x=x,
        center=center,
        scale=scale,
        shift=_if_activated(op, shift),
        **_attributes(op, "has_center", "has_shift", "activation"),
    )
    has_center, has_shift = op.get_attr("has_center"), op.get_attr("has_shift")
    return dx, -dshift * scale if has_center else None, dscale, dshift if has_shift else None


def _activated(op) -> bool:
    return op.get_attr("activation") != b"none"


def _if_activated(op, parameter):
    """What only an activation's gradient reads: without one it is not kept for the way back."""
    return parameter if _activated(op) else tf.constant([], parameter.dtype)


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
    wide = tf.float64 if x.dtype == tf.float64 else tf.float32
    return tf.reshape(tf.cast(x, wide), sizes), sizes


_REDUCED = (1, 3, 4)


def _derivative(op, z):
    """Of the activation, by z."""
    activation = op.get_attr("activation")
    if activation == b"relu":
        return tf.cast(z > 0, z.dtype)
    if activation == b"silu":
        sigmoid = tf.sigmoid(z)
        return sigmoid * (1 + z * (1 - sigmoid))
    density = tf.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return tf.math.erfc(-z / math.sqrt(2)) / 2 + z * density


def _normalize_grad_formula(op, dy, x, gamma, beta):
    groups = op.get_attr("groups")
    (view, sizes), (dy_view, _) = _view(x, op, groups), _view(dy, op, groups)
    if op.get_attr("subtract_mean"):
        # The rounded mean is a constant here: what it leaves is subtracted next.
        view -= tf.reshape(op.inputs[4], [sizes[0], 1, sizes[2], 1, 1])
        view -= tf.reduce_mean(view, _REDUCED, keepdims=True)
    epsilon = op.get_attr("epsilon") + op.get_attr("epsilon_low")
    rstd = tf.math.rsqrt(tf.reduce_mean(view * view, _REDUCED, keepdims=True) + epsilon)
    channels = [1, 1, sizes[2], sizes[3], 1]
    weight = tf.reshape(gamma, channels) if op.get_attr("has_gamma") else 1
    xhat = view * rstd
    if _activated(op):
        z = xhat * weight
        z = z + tf.reshape(beta, channels) if op.get_attr("has_beta") else z
        dy_view *= _derivative(op, z)
    weighted = dy_view * weight
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


def _scale_shift_grad_formula(op, dy, x, center, scale, shift):
    (view, sizes), (dy_view, _) = _view(x, op, None), _view(dy, op, None)
    channels = [sizes[0], 1, sizes[2], 1, 1]
    if op.get_attr("has_center"):
        view -= tf.reshape(center, channels)
    if _activated(op):
        z = view * tf.reshape(scale, channels)
        z = z + tf.reshape(shift, channels) if op.get_attr("has_shift") else z
        dy_view *= _derivative(op, z)
    dx = dy_view * tf.reshape(scale, channels)
    dscale, dshift = (tf.reduce_sum(v, _REDUCED) for v in (dy_view * view, dy_view))
    shape = tf.shape(scale)
    dx = tf.cast(tf.reshape(dx, tf.shape(x)), x.dtype)
    return dx, tf.reshape(dscale, shape), tf.reshape(dshift, shape)


def _gradient_of(formula, *differentiable):
    """The gradient of an op, from a formula of its `differentiable` inputs."""

    def gradient(op, *upstream):
        # Tensors of this graph: inside a loop the inputs are captured, and a tape sees only the
        # first time that one is.
        inputs = [tf.identity(op.inputs[i]) for i in differentiable]
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = formula(op, *inputs)
        pairs = [(o, u) for o, u in zip(outputs, upstream, strict=True) if o is not None]
        targets, seeds = zip(*pairs, strict=True)
        found = dict(zip(differentiable, tape.gradient(targets, inputs, seeds), strict=True))
        return [found.get(i) for i in range(len(op.inputs))]

    return gradient


def register(ops):
    """Tells TensorFlow the gradients of the library's ops, once."""
    global _ops
    _ops = ops
    for name, gradient in {
        "Normalize": _normalize_gradient,
        "Moments": _moments_gradient,
        "ScaleShift": _scale_shift_gradient,
        "NormalizeGrad": _gradient_of(_normalize_grad_formula, 0, 1, 2, 3),
        "MomentsGrad": _gradient_of(_moments_grad_formula, 0, 1, 3, 4),
        "ScaleShiftGrad": _gradient_of(_scale_shift_grad_formula, 0, 1, 2, 3, 4),
    }.items():
        tf.RegisterGradient(f"KerasNorms>{name}")(gradient)
