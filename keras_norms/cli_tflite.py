"""The commands of the converter: `export`, `inspect`, `compare` and `bench`.

Like `cli.py`, it imports neither Keras nor TensorFlow before a command runs.
"""

import argparse
import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

TARGETS = ("any", "cpu", "gpu", "npu")
QUANTIZE = ("float16", "dynamic", "int8", "int16x8")
NORMS = ("auto", "float", "quantized")


def add_commands(commands: Any) -> None:
    """Adds them to the command's subparsers."""
    text = "write a Keras model as a .tflite file, run it and compare the two"
    export = commands.add_parser("export", help=text, description=text)
    export.add_argument("model", help="a .keras or .h5 file, or a SavedModel folder")
    export.add_argument("output", help="the .tflite file to write")
    export.add_argument("--target", choices=TARGETS, default="any", help="what runs the file")
    text = "the numbers' format; float32 without it"
    export.add_argument("--quantize", choices=QUANTIZE, help=text)
    text = "samples for int8 and int16x8: an .npz of arrays by input name, or an .npy"
    export.add_argument("--calibration", metavar="FILE", help=text)
    text = "what the norms of an integer file compute in"
    export.add_argument("--norms", choices=NORMS, default="auto", help=text)
    text = "samples of one run; 0 leaves it open"
    export.add_argument("--batch-size", type=int, default=1, metavar="N", help=text)
    text = "an input's sizes without the batch, as 224,224,3 or image=224,224,3; ? leaves one open"
    export.add_argument("--input-shape", action="append", metavar="SIZES", help=text)
    text = "write norms as the custom op (see `keras-norms build --tflite`)"
    export.add_argument("--custom-op", action="store_true", help=text)
    export.add_argument("--no-verify", action="store_true", help="do not run the file")
    text = "samples to compare on: an .npz or .npy"
    export.add_argument("--data", metavar="FILE", help=text)
    text = "largest difference from Keras in a float32 file, relative to the largest output"
    export.add_argument("--tolerance", type=float, default=1e-5, help=text)
    text = "leave out what the file would say of itself"
    export.add_argument("--no-metadata", action="store_true", help=text)
    _finish(export, _export)

    text = "say what stands in a .tflite file"
    inspector = commands.add_parser("inspect", help=text, description=text)
    inspector.add_argument("file")
    _finish(inspector, _inspect)

    text = "run two .tflite files on the same samples and say how far their outputs are apart"
    comparer = commands.add_parser("compare", help=text, description=text)
    comparer.add_argument("a")
    comparer.add_argument("b")
    comparer.add_argument("--data", metavar="FILE", help="samples: an .npz or .npy; else noise")
    _finish(comparer, _compare)

    text = "time .tflite files against each other"
    timer = commands.add_parser("bench", help=text, description=text)
    timer.add_argument("files", nargs="+", metavar="file")
    timer.add_argument("--threads", type=int, default=1, metavar="N", help="threads of each")
    timer.add_argument("--runs", type=int, default=50, metavar="N", help="timed runs of each")
    timer.add_argument("--data", metavar="FILE", help="samples: an .npz or .npy; else noise")
    _finish(timer, _bench)


def _finish(parser: argparse.ArgumentParser, run: Callable) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=lambda arguments: _reported(parser.prog, run, arguments))


def _reported(name: str, run: Callable, arguments: argparse.Namespace) -> int:
    """Runs a command; what goes wrong is a line on stderr and the exit status 1."""
    try:
        with _progress(name):
            text = run(arguments)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    print(text)
    return 0


@contextlib.contextmanager
def _progress(name: str):
    """Shows what is being done, where somebody watches."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(f"{name}: loading TensorFlow") as status:
        from keras_norms.tflite import progress

        with progress.told_to(lambda step: status.update(f"{name}: {step}")):
            yield


def _export(arguments: argparse.Namespace) -> str:
    from keras_norms import tflite

    calibration = _arrays(arguments.calibration)
    report = tflite.convert(
        arguments.model,
        arguments.output,
        target=arguments.target,
        quantize=arguments.quantize,
        representative_data=calibration,
        norms=arguments.norms,
        batch_size=arguments.batch_size or None,
        input_shapes=_shapes(arguments.input_shape),
        custom_op=arguments.custom_op,
        verify=not arguments.no_verify,
        data=_arrays(arguments.data),
        tolerance=arguments.tolerance,
        metadata=not arguments.no_metadata,
    )
    return report.to_json() if arguments.json else str(report)


def _inspect(arguments: argparse.Namespace) -> str:
    from keras_norms import tflite

    found = tflite.inspect(arguments.file)
    return found.to_json() if arguments.json else str(found)


def _compare(arguments: argparse.Namespace) -> str:
    from keras_norms import tflite

    found = tflite.compare(arguments.a, arguments.b, _arrays(arguments.data))
    return found.to_json() if arguments.json else str(found)


def _bench(arguments: argparse.Namespace) -> str:
    from dataclasses import asdict

    from keras_norms import tflite

    rows = tflite.bench(
        arguments.files,
        threads=arguments.threads,
        runs=arguments.runs,
        data=_arrays(arguments.data),
    )
    if arguments.json:
        return json.dumps([asdict(row) for row in rows], indent=2)
    width = max(len(row.path) for row in rows)
    lines = [f"{'file':<{width}}  median us   least us  times as fast as the first"]
    lines += [f"{r.path:<{width}}  {r.median:>9.1f}  {r.least:>9.1f}  {r.ratio:.2f}" for r in rows]
    return "\n".join(lines)


def _arrays(path: str | None) -> Any:
    """Samples from a file: by input name, or alone."""
    if path is None:
        return None
    import numpy as np

    try:
        found = np.load(path, allow_pickle=False)
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise ValueError(f"{path!r} holds no arrays: {error}") from error
    if not hasattr(found, "files"):
        return found
    arrays = {name: found[name] for name in found.files}
    return arrays["arr_0"] if list(arrays) == ["arr_0"] else arrays


def _shapes(texts: list[str] | None) -> Any:
    """Sizes as `convert` takes them."""
    if not texts:
        return None
    try:
        named = [text.rpartition("=")[::2] for text in texts]
        shapes = {
            name: tuple(None if size == "?" else int(size) for size in sizes.split(","))
            for name, sizes in named
        }
    except ValueError:
        raise ValueError(
            f"--input-shape must be sizes, as 224,224,3 or image=224,224,3. Received: {texts}"
        ) from None
    return shapes[""] if list(shapes) == [""] else shapes
