"""Small models, the same with our norms and with Keras', and their training step."""

from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from benchmarks.cases import Case
from benchmarks.layers import layers

CLASSES = 10
WORDS = 1000
WIDTH, HEADS, BLOCKS = 128, 4, 2  # of the Transformer
STAGES = (32, 64, 128)  # channels of the CNN, each at half the size of the one before


def data(case: Case) -> tuple[tf.Tensor, tf.Tensor]:
    """Images and their classes, or tokens and the token that follows each."""
    rng = np.random.default_rng(0)
    if case.model == "CNN":
        x = rng.standard_normal(case.shape, "float32")
        return tf.constant(x), tf.constant(
            rng.integers(CLASSES, size=case.shape[:1], dtype="int32")
        )
    tokens = rng.integers(WORDS, size=(case.shape[0], case.shape[1] + 1), dtype="int32")
    return tf.constant(tokens[:, :-1]), tf.constant(tokens[:, 1:])


def train_step(whose: str, case: Case) -> Callable:
    """A function of x and labels: forward, backward, optimizer; returns the loss.

    The weights begin with the same values for any `whose`.
    """
    keras.utils.set_random_seed(0)
    model = {"CNN": _cnn, "Transformer": _transformer}[case.model](whose, case)
    optimizer = keras.optimizers.Adam(1e-3)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def step(x, labels):
        with tf.GradientTape() as tape:
            loss = loss_of(labels, model(x, training=True))
        gradients = tape.gradient(loss, [v.value for v in model.trainable_variables])
        optimizer.apply(gradients)
        return loss

    return step


def _cnn(whose: str, case: Case) -> keras.Model:
    x = images = keras.Input(case.shape[1:], batch_size=case.shape[0])
    for stage, channels in enumerate(STAGES):
        for strides in (1 if stage == 0 else 2, 1):
            x = keras.layers.Conv2D(channels, 3, strides, padding="same", use_bias=False)(x)
            x = keras.layers.ReLU()(_norm(whose, case)(x))
    x = keras.layers.GlobalAveragePooling2D()(x)
    return keras.Model(images, keras.layers.Dense(CLASSES)(x))


def _transformer(whose: str, case: Case) -> keras.Model:
    tokens = keras.Input(case.shape[1:], batch_size=case.shape[0], dtype="int32")
    x = keras.layers.Embedding(WORDS, WIDTH)(tokens)
    for _ in range(BLOCKS):
        y = _norm(whose, case)(x)
        attention = keras.layers.MultiHeadAttention(HEADS, WIDTH // HEADS)
        x = keras.layers.Add()([x, attention(y, y, use_causal_mask=True)])
        y = keras.layers.Dense(4 * WIDTH, activation="gelu")(_norm(whose, case)(x))
        x = keras.layers.Add()([x, keras.layers.Dense(WIDTH)(y)])
    return keras.Model(tokens, keras.layers.Dense(WORDS)(_norm(whose, case)(x)))


def _norm(whose: str, case: Case) -> keras.Layer:
    (norm,) = layers(whose, case)
    return norm
