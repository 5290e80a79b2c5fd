"""Normalization by the statistics of sub-batches, "ghost" batches (Hoffer et al. 2017)."""

from typing import Any

from keras import ops

from keras_norms import sums
from keras_norms.geometry import geometry
from keras_norms.normalize import normalize


def normalize_sub_batches(x: Any, axis: int, size: int, mask: Any = None, **arguments: Any) -> Any:
    """Normalizes each `size` neighbouring samples by themselves; the last ones may be fewer.

    Args:
        x: samples along axis 0.
        axis: the channels'.
        mask, **arguments: as in `normalize`.
    """
    axis %= len(x.shape)
    if axis == 0:
        raise ValueError(
            "With `virtual_batch_size` axis 0 holds the samples, so it cannot be the channel axis. "
            f"Received: shape={tuple(x.shape)}, axis={axis}."
        )
    samples = ops.shape(x)[0]
    if mask is not None and mask.shape[0] in (1, None):
        mask = ops.broadcast_to(mask, (samples, *ops.shape(mask)[1:]))
    parts = samples // size
    if isinstance(samples, int) and samples == parts * size:
        return _normalized(x, axis, (parts, size), mask, arguments)
    whole, rest = slice(parts * size), slice(parts * size, None)
    head = _normalized(x[whole], axis, (parts, size), _take(mask, whole), arguments)
    tail = (1, samples - parts * size)
    tail = _normalized(x[rest], axis, tail, _take(mask, rest), arguments)
    return ops.concatenate([head, tail])


def _normalized(x, axis, sizes, mask, arguments):
    shape = ops.shape(x)
    split = sums.reshape(x, (*sizes, *shape[1:]))
    if mask is not None:
        mask = sums.reshape(mask, (*sizes, *ops.shape(mask)[1:]))
    view = geometry(split.shape, axis + 1, apart="samples", groups=-1)
    return ops.reshape(normalize(split, view, mask=mask, **arguments).y, shape)


def _take(mask, samples):
    return None if mask is None else mask[samples]


def check_size(size: Any, **others: bool) -> None:
    """Raises, unless it is a number of samples that may be normalized together."""
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(
            f"`virtual_batch_size` must be an int or None. Received: virtual_batch_size={size!r}."
        )
    if size < 1:
        raise ValueError(
            f"`virtual_batch_size` must be at least 1. Received: virtual_batch_size={size}."
        )
    for name, value in others.items():
        if value:
            raise ValueError(
                f"`virtual_batch_size` and `{name}=True` exclude each other. "
                f"Received: virtual_batch_size={size}, {name}={value}."
            )
