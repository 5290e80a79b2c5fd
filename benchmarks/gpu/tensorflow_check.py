"""The op inside of TensorFlow on a GPU: `python -m benchmarks.gpu.tensorflow_check [--json FILE]`.

Layers forward and backward against NumPy in float64 (tests/oracle.py), eager, as a graph and by
XLA; a step of Keras' fit. Prints what ran, what did not and why. The exit code is 1 if something
failed that needs no more than TensorFlow, a driver and the op; what XLA lacks is only told.
"""

import argparse
import json
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DTYPES = ("float32", "bfloat16", "float16")


class Report:
    """Runs steps, each of which returns what to say of it or raises."""

    def __init__(self):
        self.rows: list[dict] = []

    def step(self, name: str, function: Callable[[], str], *, needed: bool = True) -> None:
        begin = time.perf_counter()
        try:
            outcome, detail = "ok", function()
        except Exception as error:
            outcome = "FAILED" if needed else "no"
            lines = [line for line in str(error).splitlines() if line.strip()] or [""]
            detail = f"{type(error).__name__}: {' '.join(lines[:4])}"[:400]
            if needed:
                traceback.print_exc()
        seconds = round(time.perf_counter() - begin, 2)
        self.rows.append({"name": name, "outcome": outcome, "seconds": seconds, "detail": detail})
        print(f"{outcome:7}{name}", flush=True)

    @property
    def failed(self) -> bool:
        return any(row["outcome"] == "FAILED" for row in self.rows)

    def text(self) -> str:
        lines = [
            f"{row['outcome']:7}{row['name']:52}{row['seconds']:8.2f} s  {row['detail']}"
            for row in self.rows
        ]
        counts = {o: sum(r["outcome"] == o for r in self.rows) for o in ("ok", "FAILED", "no")}
        return "\n".join([*lines, ", ".join(f"{n} {o}" for o, n in counts.items())])


def layers(kn) -> dict:
    """Name: a function of a dtype policy that makes the layer, and a shape."""
    return {
        "LayerNormalization": (lambda **k: kn.LayerNormalization(**k), (37, 768)),
        "LayerNormalization, long rows": (lambda **k: kn.LayerNormalization(**k), (3, 40_003)),
        "RMSNormalization": (lambda **k: kn.RMSNormalization(**k), (5, 29, 1031)),
        "GroupNormalization": (lambda **k: kn.GroupNormalization(8, **k), (3, 17, 19, 64)),
        "GroupNormalization, channels first": (
            lambda **k: kn.GroupNormalization(3, axis=1, **k),
            (2, 24, 17, 19),
        ),
        "InstanceNormalization": (lambda **k: kn.InstanceNormalization(**k), (3, 33, 35, 24)),
        "InstanceNormalization, channels first": (
            lambda **k: kn.InstanceNormalization(axis=1, **k),
            (3, 5, 32, 40),
        ),
        "BatchNormalization": (lambda **k: kn.BatchNormalization(**k), (8, 21, 23, 48)),
        "BatchNormalization, channels first": (
            lambda **k: kn.BatchNormalization(axis=1, **k),
            (5, 7, 24, 24),
        ),
    }


def check(report: Report, device: str) -> dict:
    """All steps on a device, "GPU:0" or, to rehearse, "CPU:0". Returns what they ran with."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")
    import keras
    import numpy as np
    import support
    import tensorflow as tf

    import keras_norms as kn

    about = {"tensorflow": tf.__version__, "keras": keras.__version__, "device": device}
    kind = device.partition(":")[0]

    def seen():
        found = tf.config.list_physical_devices(kind)
        if not found:
            raise LookupError(f"TensorFlow sees no {kind}.")
        details = tf.config.experimental.get_device_details(found[0])
        about["details"] = {name: str(value) for name, value in details.items()}
        return f"{len(found)}: {details}"

    def info():
        found = kn.kernel_info()
        about["kernel_info"] = found._asdict() if hasattr(found, "_asdict") else vars(found)
        if not found.fused or kind not in found.devices:
            raise LookupError(f"The op is not for {kind}: {found}")
        return f"devices {', '.join(found.devices)}"

    def copies():
        values = np.random.default_rng(0).normal(size=(257, 63)).astype("float32")
        tensor = tf.constant(values)
        np.testing.assert_array_equal(tensor.numpy(), values)
        return _on(tensor, device)

    report.step(f"TensorFlow sees {kind}", seen)
    if report.failed:  # on the CPU, where TensorFlow would put it, the rest would pass
        return about
    report.step("kernel_info()", info)
    with tf.device(f"/{device}"):
        report.step("a tensor there and back", copies)
        kn.set_kernel("fused")  # no silent fallback to the portable path
        for name, (make, shape) in layers(kn).items():

            def placed(make=make, shape=shape):
                layer, ones = support.built(make(), shape), np.ones(shape, "float32")
                return _on(layer(tf.constant(ones), **support.training(layer)), device)

            report.step(f"{name}: where it runs", placed)
            for dtype in DTYPES:
                for mode in ("eager", "graph", "xla"):

                    def compared(make=make, shape=shape, dtype=dtype, mode=mode):
                        layer = make(dtype=support.policy(dtype))
                        means = (0.0, 1e3) if dtype == "float32" else (3.0,)
                        arguments = {"means": means, "dtype": dtype, **support.training(layer)}
                        support.check(layer, shape, "fused", mode, **arguments)
                        return f"{'x'.join(map(str, shape))}, y and gradients"

                    # XLA for a GPU takes tools that not every machine has.
                    needed = mode != "xla" or kind == "CPU"
                    report.step(f"{name} {dtype} {mode}", compared, needed=needed)
        for jit in (False, True):
            report.step(
                f"fit, jit_compile={jit}",
                lambda jit=jit: _fit(keras, kn, np, jit),
                needed=not jit or kind == "CPU",
            )
    return about


def _on(tensor, device: str) -> str:
    if not tensor.device.endswith(device):
        raise RuntimeError(f"It was placed on {tensor.device}.")
    return tensor.device


def _fit(keras, kn, np, jit: bool) -> str:
    """Norms and element-wise layers only: matrix products may not be there."""
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((16, 16, 32)),
            kn.GroupNormalization(8, activation="silu"),
            kn.BatchNormalization(),
            keras.layers.ReLU(),
            kn.InstanceNormalization(),
            kn.LayerNormalization(),
        ]
    )
    draw = np.random.default_rng(0)
    x, y = (draw.normal(3, 2, (32, 16, 16, 32)).astype("float32") for _ in range(2))
    before = [np.array(weight) for weight in model.trainable_weights]
    model.compile(keras.optimizers.SGD(0.05), "mse", jit_compile=jit)
    losses = model.fit(x, y, batch_size=16, epochs=3, verbose=0).history["loss"]
    if not (np.isfinite(losses).all() and losses[-1] < losses[0]):
        raise ArithmeticError(f"The loss does not fall: {losses}")
    after = [np.array(weight) for weight in model.trainable_weights]
    if not all(np.isfinite(weight).all() for weight in after):
        raise ArithmeticError("A weight is not finite.")
    # What the next norm takes away again, as those before do, may change by little or nothing.
    if np.array_equal(after[-1], before[-1]):
        raise ArithmeticError("The weights of the last layer stay as they were.")
    return f"loss {losses[0]:.4f} to {losses[-1]:.4f}"


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.tensorflow_check", description=__doc__
    )
    parser.add_argument("--device", default="GPU:0", help="CPU:0 rehearses (default: GPU:0)")
    parser.add_argument("--json", type=Path, help="where to keep the rows")
    options = parser.parse_args(arguments)
    report, about = Report(), {}

    def everything():
        about.update(check(report, options.device))
        return f"{len(report.rows)} steps"

    report.step("all", everything)
    print(f"\n{about}\n{report.text()}")
    if options.json:
        options.json.write_text(json.dumps({"machine": about, "rows": report.rows}, default=str))
    return 1 if report.failed else 0


if __name__ == "__main__":
    sys.exit(main())
