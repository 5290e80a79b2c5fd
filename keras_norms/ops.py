"""Norms as functions of tensors: the layers' own computation, with the weights given.

    y = (x - mean) / sqrt(variance + epsilon) * gamma + beta

All of them take `x` in float16, bfloat16, float32 or float64 (integers become float32), compute in
float32 or wider and return x's shape and dtype. `gamma` and `beta` are optional. Errors are those
of the layer of the same name. In a functional model, on symbolic inputs, use the layers.
"""

from collections.abc import Sequence
from typing import Any

import keras
from keras import ops

from keras_norms.base import as_floats
from keras_norms.geometry import geometry
from keras_norms.moments import Moments
from keras_norms.normalize import Normalized, normalize, normalize_by

__all__ = ["batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"]


def batch_norm(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    mean: Any = None,
    variance: Any = None,
    axis: int = -1,
    epsilon: float = 1e-3,
    mask: Any = None,
) -> Normalized:
    """Normalizes each channel over samples and space, or by the statistics given.

    Args:
        x: `(batch, ..., channels)`, or with the channels at `axis`.
        gamma, beta: `(channels,)`.
        mean, variance: `(channels,)`, both or none. None: those of the batch.
        axis: int, the axis of the channels.
        epsilon: float >= 0, added to the variance.
        mask: bool, the positions that the batch's statistics are taken over: the sizes of x's axes
            without the channel axis, from the left (trailing ones may be missing).

    Returns: `(y, mean, variance)`: y, and the statistics used, `(channels,)` each. Gradients flow
    through y, not through the batch's statistics as outputs.
    """
    x = _tensor(x)
    view = geometry(x.shape, axis, apart="nothing", groups=-1)
    if (mean is None) != (variance is None):
        missing = "mean" if mean is None else "variance"
        raise ValueError(f"Give `mean` and `variance`, or none of them. Received: {missing}=None.")
    if mean is None:
        return normalize(x, view, gamma=gamma, beta=beta, epsilon=epsilon, mask=mask)
    dtype = keras.backend.result_type(x.dtype, "float32")
    mean, variance = ops.cast(mean, dtype), ops.cast(variance, dtype)
    found = Moments(mean, None, variance)
    y = normalize_by(found, x, view, gamma=gamma, beta=beta, epsilon=epsilon)
    return Normalized(y, mean, variance)


def layer_norm(
    x: Any,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int | Sequence[int] = -1,
    epsilon: float = 1e-3,
) -> Any:
    """Normalizes over `axis`, each position of each sample by itself.

    Args:
        x: any rank.
        gamma, beta: shaped as the axes of `axis`, sorted as they are given.
        axis: int, or a list or tuple of ints.
        epsilon: float >= 0, added to the variance.
    """
    x = _tensor(x)
    view = geometry(x.shape, axis, apart="positions")
    return normalize(x, view, gamma=gamma, beta=beta, epsilon=epsilon).y


def group_norm(
    x: Any,
    groups: int,
    gamma: Any = None,
    beta: Any = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-3,
) -> Any:
    """Normalizes over space and the channels of a group, each sample by itself.

    Args:
        x: `(batch, ..., channels)`, or with the channels at `axis`.
        groups: int, divides the number of channels; -1: a group per channel.
        gamma, beta: `(channels,)`.
        axis: int, the axis of the channels, not 0.
        epsilon: float >= 0, added to the variance.
    """
    x = _tensor(x)
    view = geometry(x.shape, axis, apart="samples", groups=groups)
    return normalize(x, view, gamma=gamma, beta=beta, epsilon=epsilon).y


def instance_norm(
    x: Any, gamma: Any = None, beta: Any = None, *, axis: int = -1, epsilon: float = 1e-3
) -> Any:
    """Normalizes over space, each channel of each sample by itself.

    Args:
        x: `(batch, ..., channels)`, or with the channels at `axis`.
        gamma, beta: `(channels,)`.
        axis: int, the axis of the channels, not 0.
        epsilon: float >= 0, added to the variance.
    """
    return group_norm(x, -1, gamma, beta, axis=axis, epsilon=epsilon)


def rms_norm(
    x: Any, gamma: Any = None, *, axis: int | Sequence[int] = -1, epsilon: float = 1e-6
) -> Any:
    """Divides by the root mean square over `axis`: `y = x / sqrt(mean(x**2) + epsilon) * gamma`.

    Args:
        x: any rank.
        gamma: shaped as the axes of `axis`, sorted as they are given.
        axis: int, or a list or tuple of ints.
        epsilon: float >= 0, added to the mean square.
    """
    x = _tensor(x)
    view = geometry(x.shape, axis, apart="positions")
    return normalize(x, view, gamma=gamma, epsilon=epsilon, subtract_mean=False).y


def _tensor(x):
    if isinstance(x, keras.KerasTensor):
        raise TypeError(f"`x` must be a tensor; use the layer on symbolic inputs. Received: {x}.")
    return as_floats(x)
