"""`python -m benchmarks.mobile`: measures, keeps the JSON, writes docs/mobile.md."""

import argparse
import importlib.metadata
import os
import sys
import time
import warnings
from pathlib import Path

from benchmarks import machine
from benchmarks.mobile import goals, render, results
from benchmarks.mobile.results import Result

PARTS = ("timed", "gpu", "quantized", "errors")
PACKAGES = ("ai-edge-litert", "ai-edge-quantizer")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mobile", description=__doc__)
    parser.add_argument("--json", type=Path, help="where to keep it (default: benchmarks/results/)")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, help="measures no other parts; kept only with --json"
    )
    options = parser.parse_args(arguments)
    _set_up()
    result = run(options.only or PARTS)
    path = options.json or results.FOLDER / f"{result.machine['date']}-mobile.json"
    if options.json or not options.only:
        results.write(result, path)
        print(f"kept: {path}", flush=True)
    for line in goals.shortfalls(result):
        print(f"short of its goal: {line}")
    if not (options.json or options.only):
        render.main(["--json", str(path)])
        print(f"written: {render.PAGE}")
    return 0


def run(parts: list[str] | tuple[str, ...]) -> Result:
    from benchmarks.mobile import errors, gpu, integers, timed
    from keras_norms.tflite import custom_op

    begin = time.perf_counter()
    about = machine.describe(threads=1)
    about["versions"] |= {name: importlib.metadata.version(name) for name in PACKAGES}

    def say(line: str) -> None:
        print(f"{time.perf_counter() - begin:5.0f} s  {line}", flush=True)

    missing = {}
    try:
        custom_op.library()
    except RuntimeError as error:
        missing["the custom op"] = str(error)
    if "gpu" in parts and (reason := gpu.why_not()):
        missing["the GPU delegate"] = reason
    measures = {"timed": timed, "gpu": gpu, "quantized": integers, "errors": errors}
    found = {}
    for part in parts:
        if part == "gpu" and "the GPU delegate" in missing:
            continue
        found[part] = measures[part].measure(say)
        about["load"].append(machine.load())
    say("done")
    return Result(about, missing, **found)


def _set_up() -> None:
    os.environ |= {"KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "-1"}
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras
    import tensorflow as tf

    tf.get_logger().setLevel("ERROR")
    keras.config.disable_traceback_filtering()  # it puts the reason of an error into its middle
    # TensorFlow's interpreter announces that LiteRT's takes its place; representative data and
    # export warn of what is meant here.
    warnings.simplefilter("ignore")


if __name__ == "__main__":
    sys.exit(main())
