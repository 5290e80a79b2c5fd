"""Runs every layer of the catalog on the backend of this process, for `test_backends.py`.

    KERAS_BACKEND=jax python tests/backend_worker.py FOLDER

Takes inputs, targets and weights from FOLDER/given.npz, and writes what came out to
FOLDER/<backend>.npz and .json: by layer, null or the error.
"""

import json
import sys
import tempfile
import traceback
from pathlib import Path

import keras
import numpy as np
import oracle
import rows

STEPS = 3


def given_for(row) -> dict[str, np.ndarray]:
    """What all backends begin with."""
    given = {f"x/{k}": rows.first(rows.data(row, 1, k)) for k in range(row.inputs)}
    given["target"] = rows.first(rows.data(row, 0, 9))
    layer = rows.signed(rows.make(row), rows.shapes(row))
    for name, weight in oracle.named(layer).items():
        given[f"weights/{name}"] = keras.ops.convert_to_numpy(weight.value)
    return given


def results_of(row, given) -> dict[str, np.ndarray]:
    """Outputs, and losses and weights of a few steps of training."""
    layer = rows.make(row)
    layer.build(rows.shapes(row))

    def reset():
        for name, weight in oracle.named(layer).items():
            weight.assign(given[f"weights/{name}"])

    reset()
    inputs = [given[f"x/{k}"] for k in range(row.inputs)]
    x = inputs if row.inputs > 1 else inputs[0]
    model = rows.model_of(row, layer)
    found = {"inference": rows.outputs_of(model, x)}
    if layer.trainable_weights:
        model.compile(keras.optimizers.SGD(0.01), keras.losses.MeanSquaredError())
        options = {"batch_size": row.shape[0], "epochs": STEPS, "shuffle": False, "verbose": 0}
        found["losses"] = np.array(model.fit(x, given["target"], **options).history["loss"])
    for name, weight in oracle.named(layer).items():
        found[f"weights/{name}"] = keras.ops.convert_to_numpy(weight.value)
    with tempfile.TemporaryDirectory() as folder:
        model.save(f"{folder}/model.keras")
        again = keras.saving.load_model(f"{folder}/model.keras")
        np.testing.assert_array_equal(rows.outputs_of(again, x), rows.outputs_of(model, x))
    return found


def main(folder: Path) -> None:
    with np.load(folder / "given.npz") as file:
        everything = dict(file)
    found, errors = {}, {}
    for row in rows.CATALOG:
        prefix = f"{row.name}/"
        given = {k.removeprefix(prefix): v for k, v in everything.items() if k.startswith(prefix)}
        errors[row.name] = None
        try:
            found |= {prefix + name: value for name, value in results_of(row, given).items()}
        except Exception:
            errors[row.name] = traceback.format_exc()
    name = keras.backend.backend()
    np.savez(folder / f"{name}.npz", **found)
    (folder / f"{name}.json").write_text(json.dumps(errors))


if __name__ == "__main__":
    main(Path(sys.argv[-1]))
