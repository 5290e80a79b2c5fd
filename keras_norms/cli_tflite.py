"""The commands of the converter: `export`, `inspect`, `compare` and `bench`.

Like `cli.py`, it imports neither Keras nor TensorFlow before a command runs.
"""

import argparse
import contextlib
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from keras_norms.cli_words import as_typed
from keras_norms.messages import one_line

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
    export.add_argument("--batch-size", type=_whole, default=1, metavar="N", help=text)
    text = "an input's sizes without the batch, as 224,224,3 or image=224,224,3; ? leaves one open"
    export.add_argument("--input-shape", type=_shape, action="append", metavar="SIZES", help=text)
    text = "write norms as the custom op (see `keras-norms build --tflite`)"
    export.add_argument("--custom-op", action="store_true", help=text)
    export.add_argument("--no-verify", action="store_true", help="do not run the file")
    text = "samples to compare on: an .npz or .npy"
    export.add_argument("--data", metavar="FILE", help=text)
    text = "largest difference from Keras in a float32 file, relative to the largest output"
    export.add_argument("--tolerance", type=_positive, default=1e-5, help=text)
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
    text = "seconds that each file may take"
    comparer.add_argument("--timeout", type=_positive, default=600.0, metavar="S", help=text)
    _finish(comparer, _compare)

    text = "time .tflite files against each other"
    timer = commands.add_parser("bench", help=text, description=text)
    timer.add_argument("files", nargs="+", metavar="file")
    timer.add_argument("--threads", type=_count, default=1, metavar="N", help="threads of each")
    timer.add_argument("--runs", type=_count, default=50, metavar="N", help="timed runs of each")
    timer.add_argument("--data", metavar="FILE", help="samples: an .npz or .npy; else noise")
    _finish(timer, _bench)


def _finish(parser: argparse.ArgumentParser, run: Callable) -> None:
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.epilog = "TensorFlow's log is shown if TF_CPP_MIN_LOG_LEVEL is set."
    parser.set_defaults(run=lambda arguments: _reported(parser, run, arguments))


def _reported(parser: argparse.ArgumentParser, run: Callable, arguments: argparse.Namespace) -> int:
    """Runs a command; what goes wrong is a line on stderr and the exit status 1."""
    if usage := _wrong_usage(arguments):
        parser.error(usage)
    try:
        with _quiet() as terminal, _progress(parser.prog, terminal):
            whole_package()
            text = run(arguments)
    except Exception as error:  # a model's layers can raise anything
        known = isinstance(error, ValueError | TypeError | OSError | ImportError | RuntimeError)
        kind = "" if known else f"{type(error).__name__}: "
        print(f"{parser.prog}: {kind}{as_typed(one_line(error, 2000))}", file=sys.stderr)
        return 1
    print(text)
    return 0


def _wrong_usage(arguments: argparse.Namespace) -> str | None:
    """Options that exclude or need each other, said before anything is loaded."""
    given = vars(arguments)
    if given.get("quantize") in ("int8", "int16x8") and not given["calibration"]:
        return f"--quantize {given['quantize']} needs --calibration FILE"
    if given.get("calibration") and given["quantize"] not in ("int8", "int16x8"):
        return "--calibration is for --quantize int8 and int16x8"
    if given.get("no_verify") and given["data"]:
        return "--data is what the file is compared on, and --no-verify compares nothing"
    names = [name for name, _ in given.get("input_shape") or ()]
    if len(set(names)) < len(names) or ("" in names and len(names) > 1):
        return "--input-shape given several times needs a name in each: image=224,224,3"
    return None


def whole_package() -> None:
    """Runs the package's own code, which imports Keras, if it has not run yet."""
    package = importlib.import_module("keras_norms")
    if not hasattr(package, "__all__"):  # as keras_norms_command.py leaves it
        importlib.reload(package)


@contextlib.contextmanager
def _quiet() -> Iterator[TextIO]:
    """Keeps the libraries' logs off stderr; yields what writes there nevertheless.

    TensorFlow and LiteRT write some of theirs at any level, and to the descriptor itself.
    """
    if "TF_CPP_MIN_LOG_LEVEL" in os.environ or sys.stderr is not sys.__stderr__:
        yield sys.stderr
        return
    sys.stderr.flush()
    kept, null = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(null, 2)
        with os.fdopen(os.dup(kept), "w") as terminal:
            yield terminal
    finally:
        sys.stderr.flush()
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)


@contextlib.contextmanager
def _progress(name: str, terminal: TextIO) -> Iterator[None]:
    """Shows what is being done, where somebody watches."""
    if not terminal.isatty():
        yield
        return
    from rich.console import Console
    from rich.markup import escape

    with Console(file=terminal).status(f"{name}: loading TensorFlow") as status:
        # Not before: the package's code runs when it is imported.
        whole_package()
        from keras_norms.tflite import progress

        with progress.told_to(lambda step: status.update(escape(f"{name}: {step}"))):
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

    data = _arrays(arguments.data)
    found = tflite.compare(arguments.a, arguments.b, data, timeout=arguments.timeout)
    return found.to_json() if arguments.json else str(found)


def _bench(arguments: argparse.Namespace) -> str:
    from keras_norms import tflite
    from keras_norms.tflite.text import as_json

    rows = tflite.bench(
        arguments.files,
        threads=arguments.threads,
        runs=arguments.runs,
        data=_arrays(arguments.data),
    )
    if arguments.json:
        return as_json(rows)
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
        alone = isinstance(found, np.ndarray)
        arrays = {"arr_0": found} if alone else {name: found[name] for name in found.files}
    except Exception as error:  # a damaged file can make the reader fail in any way
        raise ValueError(f"{path!r} holds no arrays: {one_line(error)}") from error
    if not all(isinstance(array, np.ndarray) for array in arrays.values()):
        raise ValueError(f"{path!r} holds no arrays: it is an archive of other files")
    return arrays["arr_0"] if list(arrays) == ["arr_0"] else arrays


def _shapes(given: list[tuple[str, tuple]] | None) -> Any:
    """Sizes as `convert` takes them."""
    if not given:
        return None
    shapes = dict(given)
    return shapes.get("", shapes)


def _shape(text: str) -> tuple[str, tuple[int | None, ...]]:
    """An input's name, empty if there is none, and its sizes."""
    name, _, sizes = text.rpartition("=")
    try:
        return name, tuple(
            None if size.strip() == "?" else _count(size) for size in sizes.split(",")
        )
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"must be sizes, as 224,224,3 or image=224,224,3. Received: {text!r}"
        ) from None


def _whole(text: str) -> int:
    return _number(text, int, 0, "an integer of 0 or more")


def _count(text: str) -> int:
    return _number(text, int, 1, "an integer above 0")


def _positive(text: str) -> float:
    return _number(text, float, math.ulp(0), "a number above 0")


def _number(text: str, kind: type, least: float, words: str) -> Any:
    with contextlib.suppress(ValueError):
        number = kind(text)
        if least <= number < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"must be {words}. Received: {text!r}")
