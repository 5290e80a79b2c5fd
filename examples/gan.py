"""A small GAN that draws handwritten digits, held in check by norms.

    python examples/gan.py

The generator takes its style by adaptive instance normalization (StyleGAN's AdaIN), the
discriminator is 1-Lipschitz by spectral normalization, a true reparametrization, and a gradient
penalty (R1) goes through it, so gradients of gradients do. Both are saved, loaded and asked again.
Ends with 1 if a loaded model answers otherwise, if a kernel's spectral norm is not 1, or if the
drawings are no nearer to real digits than before training.
"""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import keras_norms as kn

LATENT = 32


def load():
    """1797 digits of 8x8 pixels in [-1, 1]."""
    from sklearn.datasets import load_digits

    x, _ = load_digits(return_X_y=True)
    return (x.reshape(-1, 8, 8, 1) / 8 - 1).astype("float32")


def generator():
    """Begins with 2x2 positions that are the same for all; the latent vector is the style."""
    layers = keras.layers
    latent = keras.Input((LATENT,), name="latent")
    style = layers.Dense(64, activation="silu")(kn.PixelNormalization()(latent))
    x = layers.Reshape((2, 2, 64))(layers.Dense(256)(style))
    for filters in (64, 32):
        x = layers.Conv2D(filters, 3, padding="same")(layers.UpSampling2D()(x))
        x = kn.AdaptiveNormalization("instance", "dense", activation="silu")([x, style])
    return keras.Model(latent, layers.Conv2D(1, 3, padding="same", activation="tanh")(x))


def discriminator():
    """Positive for a real image, negative for a drawing."""
    layers = keras.layers

    def spectral(layer):
        return kn.SpectralNormalization(layer, reparam=True)

    return keras.Sequential(
        [
            keras.Input((8, 8, 1), name="image"),
            spectral(layers.Conv2D(32, 3, padding="same", activation="leaky_relu")),
            spectral(layers.Conv2D(64, 4, 2, padding="same", activation="leaky_relu")),
            spectral(layers.Conv2D(64, 4, 2, padding="same", activation="leaky_relu")),
            layers.Flatten(),
            spectral(layers.Dense(1)),
        ]
    )


class GAN(keras.Model):
    """Hinge losses, and the penalty `weight / 2 * |d discriminator / d image|^2` at real images."""

    def __init__(self, generator, discriminator, weight=0.1):
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.weight = weight

    def compile(self, rate):
        super().compile(jit_compile=False)
        self.optimizers = [keras.optimizers.Adam(rate, beta_1=0.0, beta_2=0.9) for _ in range(2)]

    def train_step(self, real):
        models = self.generator, self.discriminator
        latent = tf.random.normal((tf.shape(real)[0], LATENT))
        with tf.GradientTape() as tape:
            drawn = self.generator(latent, training=True)
            with tf.GradientTape() as inner:
                inner.watch(real)
                answer = self.discriminator(real, training=True)
            slope = inner.gradient(answer, real)
            penalty = tf.reduce_mean(tf.reduce_sum(slope**2, (1, 2, 3))) * self.weight / 2
            loss = tf.reduce_mean(tf.nn.relu(1 - answer)) + penalty
            loss += tf.reduce_mean(tf.nn.relu(1 + self.discriminator(drawn, training=True)))
        self.step(1, tape.gradient(loss, models[1].trainable_variables))
        with tf.GradientTape() as tape:
            answer = self.discriminator(self.generator(latent, training=True))
            fooled = -tf.reduce_mean(answer)
        self.step(0, tape.gradient(fooled, models[0].trainable_variables))
        return {"discriminator": loss, "generator": fooled, "penalty": penalty}

    def step(self, k, gradients):
        model = (self.generator, self.discriminator)[k]
        self.optimizers[k].apply_gradients(zip(gradients, model.trainable_variables, strict=True))


def distance(drawn, real):
    """From a drawing to the nearest real image, root of the mean square over pixels, on average."""
    drawn, real = drawn.reshape(len(drawn), -1), real.reshape(len(real), -1)
    square = ((drawn[:, None] - real[None]) ** 2).mean(-1)
    return float(np.sqrt(square.min(1)).mean())


def draw(path, images):
    """A sheet of drawings."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(5, 10, figsize=(10, 5), layout="constrained")
    for axis, image in zip(axes.flat, images, strict=False):
        axis.imshow(image[..., 0], cmap="gray_r", vmin=-1, vmax=1)
        axis.axis("off")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=30, help="passes over the data")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "output",
        help="the folder to write into",
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    keras.utils.set_random_seed(options.seed)
    real = load()
    latent = np.random.default_rng(options.seed).normal(size=(200, LATENT)).astype("float32")
    gan = GAN(generator(), discriminator())
    gan.compile(2e-3)
    before = distance(gan.generator.predict(latent, verbose=0), real)
    data = tf.data.Dataset.from_tensor_slices(real).shuffle(len(real)).batch(64, True)
    gan.fit(data, epochs=options.epochs, verbose=2)

    drawn = gan.generator.predict(latent, verbose=0)
    after, apart = distance(drawn, real), float(drawn.std(0).mean())
    print(f"\nnearest real digit   {before:.3f} before training, {after:.3f} after")
    print(f"spread of drawings   {apart:.3f} (real digits {real.std(0).mean():.3f})")
    same, norms = True, []
    for name, model, x in (
        ("generator", gan.generator, latent),
        ("discriminator", gan.discriminator, real[:200]),
    ):
        path = options.out / f"gan_{name}.keras"
        model.save(path)
        again = keras.saving.load_model(path).predict(x, verbose=0)
        same &= np.array_equal(again, model.predict(x, verbose=0))
    for layer in gan.discriminator.layers:
        if isinstance(layer, kn.SpectralNormalization):
            kernel = layer.remove().kernel.numpy()  # as a deployed model would hold it
            norms.append(np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2))
    print("spectral norms       " + ", ".join(f"{norm:.3f}" for norm in norms))
    draw(options.out / "gan.png", drawn)
    print(f"picture              {options.out / 'gan.png'}")

    if not same:
        sys.exit("Failed: a loaded model does not predict what the saved one does.")
    if not np.allclose(norms, 1, atol=0.05):
        sys.exit("Failed: the discriminator's kernels are not of spectral norm 1.")
    if not after < 0.75 * before:
        sys.exit("Failed: the drawings are not much nearer to real digits than before training.")


if __name__ == "__main__":
    main()
