"""Kernels that are computed from other weights, in float64, from the papers.

Imports NumPy and nothing of ours. A kernel is a matrix here, a column for each output; x and the
weights may be complex, as `oracle.py` says. The functions named after a wrapper are of a Dense
layer in it. `f_gradients(dw, ...)` takes the gradient of f's result to those of its arguments that
are trained; `test_reparametrization.py` checks these by the complex step.
"""

import numpy as np
from reference import number


def columns(kernel, axes):
    """A kernel as a matrix; `axes` number the outputs."""
    moved = np.moveaxis(kernel, axes, range(-len(axes), 0))
    return moved.reshape(-1, np.prod([kernel.shape[a] for a in axes], dtype=int))


def from_columns(matrix, shape, axes):
    """A kernel of this shape from its matrix."""
    rest = [a for a in range(len(shape)) if a not in axes]
    moved = matrix.reshape([shape[a] for a in (*rest, *axes)])
    return np.moveaxis(moved, range(-len(axes), 0), axes)


def weight_norm(v, g):
    """Salimans and Kingma 2016, equation 2."""
    v = number(v)
    return v * (number(g) / np.sqrt(np.square(v).sum(0)))


def weight_norm_gradients(dw, v, g):
    """Equation 3: dv and dg."""
    length = np.sqrt(np.square(v).sum(0))
    dg = (dw * v).sum(0) / length
    return g / length * (dw - dg * v / length), dg


def standardized(v, epsilon=1e-6, gain=None, gamma=1.0):
    """Qiao et al. 2019, equation 5; Brock, De and Smith 2021, equation 1, with a gain."""
    v = number(v)
    centred = v - v.mean(0)
    w = centred / np.sqrt(np.square(centred).mean(0) + epsilon)
    return w if gain is None else w * (number(gain) * gamma / np.sqrt(len(v)))


def standardized_gradients(dw, v, epsilon=1e-6, gain=None, gamma=1.0):
    """dv, and that of the gain if there is one."""
    r = 1 / np.sqrt(v.var(0) + epsilon)
    h = (v - v.mean(0)) * r
    d = dw if gain is None else dw * (gain * gamma / np.sqrt(len(v)))
    dv = r * (d - d.mean(0) - h * (d * h).mean(0))
    return (dv,) if gain is None else (dv, (dw * h).sum(0) * gamma / np.sqrt(len(v)))


def unit(vector):
    return vector / np.sqrt(np.square(vector).sum())


def power_method(w, u, rounds):
    """Miyato et al. 2018, algorithm 1, of the transposed matrix: u has an element per output."""
    w, u = w.real, np.reshape(u, -1).real
    for _ in range(rounds):
        v = unit(w @ u)
        u = unit(v @ w)
    return u, v


def spectral(w, u, v):
    """Equation 8: u and v are constants."""
    w = number(w)
    return w / (np.reshape(v, -1).real @ w @ np.reshape(u, -1).real)


def spectral_gradients(dw, w, u, v):
    """dw of equation 12: what changes the length of the kernel along u and v is taken off."""
    u, v = np.reshape(u, -1), np.reshape(v, -1)
    sigma = v @ w @ u
    return ((dw - (dw * w).sum() / sigma * np.outer(v, u)) / sigma,)


def _dense(x, kernel, weights):
    return number(x) @ kernel + weights["bias"]


def weight_normalization(x, weights, config, training):
    """Equation 5, too: what the first batch sets is a constant, and so are x and the weights then.

    Salimans and Kingma 2016, section 3.
    """
    v, g, bias = weights["kernel"], number(weights["g"]), number(weights["bias"])
    g_offset, bias_offset = weights.get("g_offset", 0), weights.get("bias_offset", 0)
    first = training and config["trainable"] and not weights.get("initialized", 1)
    if first and x.size:
        t = (number(x) @ weight_norm(v, np.ones(len(g)))).real.reshape(-1, len(g))
        g_offset, bias_offset = 1 / t.std(0) - g.real, -t.mean(0) / t.std(0)
    return _dense(x, weight_norm(v, g + g_offset), {"bias": bias + bias_offset})


def weight_standardization(x, weights, config, training):
    kernel = standardized(
        weights["kernel"], config["epsilon"], weights.get("gain"), config["gamma"]
    )
    return _dense(x, kernel, weights)


def spectral_normalization(x, weights, config, training):
    u, v = weights["vector_u"], weights["vector_v"]
    if training and config["trainable"]:
        u, v = power_method(number(weights["kernel"]), u, config["power_iterations"])
    return _dense(x, spectral(weights["kernel"], u, v), weights)
