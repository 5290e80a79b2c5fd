"""Puts the spaces back into text: a character LSTM with layer normalization, both ways, masked.

    python examples/characters.py

The lines are English prose, the data set descriptions that come with scikit-learn, without spaces.
For every letter the network says whether a space follows. Lines are of any length: they are padded
and the padding is masked, and what it holds must not matter. The model is saved, loaded and asked
again, and exported. Ends with 1 if any of these answer otherwise, or if fewer than 7 in 10 spaces
are found right.
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

LENGTH = 72
LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;-()'\"/"


def load():
    """Letters as numbers from 1, 0 for padding, and whether a space follows; a test of one in 8."""
    import sklearn.datasets

    draw = np.random.default_rng(0)
    files = sorted((Path(sklearn.datasets.__file__).parent / "descr").glob("*.rst"))
    lines = []
    for file in files:
        words = [word for word in file.read_text().lower().split() if set(word) <= set(LETTERS)]
        while words:
            count = draw.integers(3, 13)
            lines.append(words[:count])
            words = words[count:]
    x, y = np.zeros((len(lines), LENGTH), "int32"), np.zeros((len(lines), LENGTH, 1), "float32")
    for k, words in enumerate(lines):
        codes = [LETTERS.index(letter) + 1 for letter in "".join(words)][:LENGTH]
        x[k, : len(codes)] = codes
        ends = np.cumsum([len(word) for word in words])[:-1] - 1
        y[k, ends[ends < LENGTH]] = 1
    order = draw.permutation(len(x))
    x, y = x[order], y[order]
    test = len(x) // 8
    return (x[test:], y[test:]), (x[:test], y[:test])


def network(units):
    layers = keras.layers
    cell = kn.LayerNormLSTMCell(units)
    return keras.Sequential(
        [
            keras.Input((None,), name="letters", dtype="int32"),
            layers.Embedding(len(LETTERS) + 1, 32, mask_zero=True),
            layers.Bidirectional(layers.RNN(cell, return_sequences=True)),
            layers.Dense(1),
        ]
    )


def found(logits, y, x):
    """Of spaces: precision and recall together (F1)."""
    said, is_so = (logits > 0) & (x > 0)[..., None], y > 0
    return 2 * np.sum(said & is_so) / (np.sum(said) + np.sum(is_so))


def spaced(codes, logits):
    """The line as the network reads it."""
    pairs = zip(codes, logits[:, 0], strict=True)
    return "".join(LETTERS[code - 1] + " " * int(logit > 0) for code, logit in pairs if code)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__.partition("\n")[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=12, help="passes over the data")
    parser.add_argument("--units", type=int, default=48, help="of each direction")
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
    (x, y), (x_test, y_test) = load()
    print(f"data    {len(x)} lines to train on, {len(x_test)} to test")
    model = network(options.units)
    model.compile(
        keras.optimizers.Adam(1e-2),
        keras.losses.BinaryCrossentropy(from_logits=True),
        jit_compile=False,
    )
    model.fit(x, y, batch_size=32, epochs=options.epochs, verbose=2)

    logits = model.predict(x_test, verbose=0)
    score = found(logits, y_test, x_test)
    print(f"\nspaces  F1 {score:.1%}")
    for k in range(3):
        print(f"        {spaced(x_test[k], logits[k])}")

    path = options.out / "characters.keras"
    model.save(path)
    again = keras.saving.load_model(path).predict(x_test, verbose=0)
    kn.export(model, options.out / "characters")
    saved = tf.saved_model.load(options.out / "characters")
    served = saved.serve(x_test).numpy()
    longer = model.predict(np.pad(x_test, ((0, 0), (0, 9))), verbose=0)[:, :LENGTH]
    letters = x_test > 0

    if not np.array_equal(again, logits):
        sys.exit("Failed: the loaded model does not predict what the saved one does.")
    if not np.allclose(served, logits, atol=1e-4):
        sys.exit("Failed: the exported model does not predict what this one does.")
    if not np.allclose(longer[letters], logits[letters], atol=1e-5):
        sys.exit("Failed: padding changes the prediction.")
    if not score > 0.7:
        sys.exit("Failed: fewer than 7 in 10 spaces are found right.")


if __name__ == "__main__":
    main()
