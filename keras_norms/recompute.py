"""The moving statistics of a trained model, recomputed over a data set ("precise" batch norm)."""

import itertools
from collections.abc import Iterable
from typing import Any

import keras

from keras_norms.moving import MovingNormalization, recording


def recompute_statistics(
    model: keras.Model, dataset: Iterable[Any], steps: int | None = None, verbose: int = 1
) -> list[str]:
    """Replaces moving statistics by those of a data set, at the model's present weights.

    Moving averages lag behind the weights and, with small batches, are noisy. Here the model runs
    over the data as at inference (no dropout, no other state changes), but its norms go by each
    batch; the batches' statistics are then put together in float64, each batch with the weight of
    its elements: for `BatchNormalization` into the mean and variance of all elements.

    Args:
        model: holds layers with moving statistics, at any depth.
        dataset: batches, each the inputs or a tuple `(inputs, targets, ...)`: a `tf.data.Dataset`,
            a `keras.utils.PyDataset`, a generator or any iterable.
        steps: int >= 1, how many batches to use; None: all, so there must be an end.
        verbose: 1 shows a progress bar, 0 does not.

    Returns: paths of the layers whose statistics were replaced. A layer with `trainable=False` or
    `freeze_statistics=True`, and one that no batch reached, keeps its own.

    Raises:
        TypeError: `model` is no `keras.Model`.
        ValueError: there is no layer to do it for, `steps` is below 1, or there is no batch. Then,
            and if a batch fails, nothing has changed.

    Source: Wu and Johnson 2021, arXiv:2105.07576, section 3 (there batches of equal size).
    """
    if not isinstance(model, keras.Model):
        raise TypeError(f"`model` must be a keras.Model. Received: model={model!r}.")
    if steps is not None and (not isinstance(steps, int) or steps < 1):
        raise ValueError(
            f"`steps` must be an int of at least 1 or None. Received: steps={steps!r}."
        )
    layers = [layer for layer in model._flatten_layers() if _moves(layer)]
    if not layers:
        raise ValueError(
            "The model holds no layer of keras_norms with moving statistics that may change "
            f"(Keras' own do not count). Received: model={model.name!r}."
        )
    bar = keras.utils.Progbar(_length(dataset, steps), unit_name="batch", verbose=verbose)
    done = 0
    with recording(layers) as records:
        for done, batch in enumerate(_batches(dataset, steps), 1):
            inputs, *_ = keras.utils.unpack_x_y_sample_weight(batch)
            model(inputs, training=False)
            bar.update(done)
    if not done:
        raise ValueError(f"`dataset` must hold a batch. Received: dataset={dataset!r}, empty.")
    if bar.target is None:
        bar.update(done, finalize=True)
    reached = {layer: record for layer, record in records.items() if record.statistics}
    for layer, record in reached.items():
        layer.take(record)
    return [layer.path for layer in reached]


def _moves(layer: keras.Layer) -> bool:
    own = isinstance(layer, MovingNormalization) and layer.moving
    return bool(own and layer.trainable and not layer.freeze_statistics)


def _length(dataset: Any, steps: int | None) -> int | None:
    """How many batches there will be; None if nobody knows."""
    try:
        length = len(dataset)
    except TypeError:  # a generator, or a tf.data.Dataset that does not know
        return steps
    return length if steps is None else min(length, steps)


def _batches(dataset: Any, steps: int | None):
    if isinstance(dataset, keras.utils.PyDataset):
        dataset = (dataset[i] for i in range(dataset.num_batches))
    return itertools.islice(dataset, steps)
