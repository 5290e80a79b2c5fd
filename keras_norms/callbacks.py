"""Callbacks for `fit`."""

from typing import Any

import keras

from keras_norms.base import number
from keras_norms.layers.sparse_switchable_normalization import SparseSwitchableNormalization


class SparsityRadius(keras.callbacks.Callback):
    """Raises the radius of every `SparseSwitchableNormalization` of the model, at any depth.

    At the beginning of each epoch (counted from 0, `initial_epoch` included) the radius becomes

        radius = largest_radius * min(start + (1 - start) * epoch / epochs, 1)

    so from epoch `epochs` on each layer goes by one statistic for the mean and one for the
    variance: give `fit` more epochs than that to train with the choice. The radius is a weight of
    the layer, so it is saved with the model.

    Args:
        epochs: int >= 1, the epoch from which on the radius is the largest.
        start: float in [0, 1], the share of the largest radius in epoch 0.

    Raises:
        ValueError: `epochs` or `start` is out of bounds; in `fit`, the model has no such layer.
        TypeError: `epochs` or `start` is no number.

    Source: Shao et al. 2019, arXiv:1903.03793, section 3.3.
    """

    def __init__(self, epochs: int, start: float = 0.0):
        super().__init__()
        self.epochs: int = number("epochs", epochs, least=1)
        self.start: float = number("start", start, least=0, most=1)

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        layers = [
            layer
            for layer in self.model._flatten_layers()
            if isinstance(layer, SparseSwitchableNormalization)
        ]
        if not layers:
            raise ValueError(
                "`SparsityRadius` needs a model with a `SparseSwitchableNormalization`. "
                f"Received: model={self.model.name!r}."
            )
        share = min(self.start + (1 - self.start) * epoch / self.epochs, 1.0)
        for layer in layers:
            layer.radius.assign(share * layer.largest_radius)
