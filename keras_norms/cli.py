"""The `keras-norms` command: `doctor`, `list`, `build`, and those of `cli_tflite.py`.

Imports neither Keras nor TensorFlow by itself, so that it speaks where those cannot be imported.
"""

import argparse
import importlib.metadata
import importlib.resources
import json
import platform
import re
import subprocess
import sys
from collections.abc import Sequence

from keras_norms import build, cli_tflite, compiling, cuda, library

# In a process of its own, since a broken TensorFlow or library may end the process it is in.
_PROBE = """
import dataclasses, json, keras, numpy, keras_norms
found = {"backend": keras.backend.backend(), **dataclasses.asdict(keras_norms.kernel_info())}
if found["backend"] == "tensorflow":
    import tensorflow as tf
    from keras_norms import fused
    found["gpus"] = [[name, list(capability)] for name, capability in fused.gpus()]
def check(device):
    layer = keras_norms.LayerNormalization(epsilon=0.0)
    run = tf.function(layer, jit_compile=True) if "XLA" in device else layer
    with tf.device("CPU" if "CPU" in device else "GPU"):
        y = run(tf.constant([[1.0, 3.0]]))
    error = float(abs(numpy.asarray(y) - [[-1.0, 1.0]]).max())
    if not error < 1e-6:
        raise RuntimeError(f"the op computes wrongly on {device}: error {error:.1g}.")
if found["fused"]:
    keras_norms.set_kernel("fused")
    try:
        for device in found["devices"]:
            check(device)
    except Exception as problem:
        found.update(fused=False, why_not=str(problem).splitlines()[0])
print("FOUND" + json.dumps(found))
"""

_PACKAGES = {  # distribution: what to install where it is missing
    "keras": "keras",
    "numpy": "numpy",
    "tensorflow": "keras-norms[tensorflow]",
    "ai-edge-litert": "keras-norms[tflite]",
}


def diagnose() -> dict:
    """What `keras-norms doctor` reports, as JSON would have it."""
    tensorflow = library.tensorflow()
    path = library.library_path()
    state = {
        "keras_norms": library.VERSION,
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in _PACKAGES},
        "compiler": _compiler(),
        "library": str(path) if path.is_file() else None,
        "destination": str(library.destination()),
        "record": library.read_record(path),
        "backend": None,
        "kernel": None,
        "fused": False,
        "xla": False,
        "simd": None,
        "devices": [],
        "driver": None,
        "why_no_driver": None,
        "gpus": [],
        "why_not": None,
        "cure": None,
    }
    try:
        state["driver"] = cuda.driver_version()
    except OSError as error:
        state["why_no_driver"] = str(error)
    found, problem = _probe()
    if found:
        state["gpus"] = found.get("gpus", [])
        for name in ("backend", "kernel", "fused", "simd", "devices", "why_not"):
            state[name] = found[name]
        state["xla"] = state["fused"] and "XLA:CPU" in state["devices"]
        # Beside the op, which library it is: the process that loaded it knows best.
        state["library"] = found["library"] or state["library"]
    elif tensorflow is None:
        state["why_not"] = f"TensorFlow is not installed, and Keras needs it: {problem}"
    else:
        state["why_not"] = f"`import keras_norms` fails: {problem}"
    if not state["fused"]:
        state["why_not"] = state["why_not"] or "The library is not loaded."
        state["cure"] = _cure(state)
    return state


def _cure(state: dict) -> str:
    """What to do, in the order in which it is to be done."""
    if not state["platform"].startswith("Linux"):
        return "Nothing: the compiled op is for Linux; the portable path serves here."
    if state["packages"]["keras"] is None:
        return "Run `pip install keras`."
    if state["packages"]["tensorflow"] is None:
        if state["backend"]:
            return (
                f"Nothing, if you mean to use {state['backend']}: the portable path serves it. "
                "Else `pip install keras-norms[tensorflow]`, then `keras-norms build`."
            )
        return (
            "Run `pip install keras-norms[tensorflow]` (or `keras-norms[cpu]`), then "
            "`keras-norms build`. Or choose another backend by KERAS_BACKEND: the portable path "
            "serves it."
        )
    if state["backend"] not in (None, "tensorflow"):
        return f"Nothing: the op serves TensorFlow; the portable path serves {state['backend']}."
    if reason := library.refusal(state["library"] or state["destination"]):
        state["why_not"] = reason
        if state["compiler"] is None:
            return compiling.COMPILER_CURE
        return library.CURE
    if state["backend"] is None:
        return "Mend the import above; if it is the library's fault, `keras-norms build --force`."
    if state["gpus"] and "CUDA kernels" in state["why_not"]:
        hidden = "The portable path serves the GPU; CUDA_VISIBLE_DEVICES=-1 hides it."
        return hidden if state["record"]["cuda"] else f"{cuda.CURE} {hidden}"
    return "Run `keras-norms build --force`."


def _version(name: str) -> str | None:
    if name == "tensorflow":
        found = library.tensorflow()
        return found and found.version
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _compiler() -> str | None:
    try:
        return compiling.compiler_version(compiling.find_compiler())
    except compiling.BuildError:
        return None


def _probe() -> tuple[dict | None, str]:
    """What a process that imports keras_norms finds, or the reason why it could not."""
    command = [sys.executable, "-c", _PROBE]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except subprocess.TimeoutExpired:
        return None, "no answer in 300 s."
    if found := re.search(r"^FOUND(.*)", done.stdout, re.MULTILINE):
        return json.loads(found[1]), ""
    if done.returncode < 0:
        return None, f"the process ended by signal {-done.returncode}."
    return None, (done.stderr.strip().splitlines() or ["no message."])[-1]


def _doctor(arguments: argparse.Namespace) -> int:
    state = diagnose()
    if arguments.json:
        print(json.dumps(state, indent=2))
        return 0 if state["fused"] else 1
    rows = [
        ("keras-norms", state["keras_norms"]),
        ("python", f"{state['python']}, {state['platform']}"),
    ]
    for name, version in state["packages"].items():
        missing = f"not installed: `pip install {_PACKAGES[name]}`"
        rows.append((name, version or missing))
    rows += [
        ("backend", state["backend"] or "none can be imported"),
        ("kernel", state["kernel"] or "unknown"),
        ("compiler", state["compiler"] or f"none. {compiling.COMPILER_CURE}"),
        ("library", state["library"] or f"none (would be {state['destination']})"),
    ]
    if record := state["record"]:
        said = f"TensorFlow {record.get('tensorflow')}, keras-norms {record.get('keras_norms')}"
        rows.append(("  built for", f"{said}, sources {record.get('sources')}"))
        rows.append(("  built by", f"{record.get('compiler')}, {record.get('machine')}"))
        rows.append(("  for CPUs", ", ".join(build.cpu_targets(record.get("machine")))))
        rows.append(("  for GPUs", _cuda_kernels(record.get("cuda", []), state["gpus"])))
    rows.append(("CUDA driver", _driver(state)))
    rows.append(("GPU", _gpus(state)))
    if state["fused"]:
        rows.append(("fused op", f"works on {', '.join(state['devices'])} with {state['simd']}"))
        rows.append(("XLA", "runs the op too" if state["xla"] else "takes the portable path"))
    else:
        rows += [("fused op", "does not work; the portable path computes")]
        rows += [("  why", state["why_not"]), ("  cure", state["cure"])]
    for name, value in rows:
        print(f"{name:<15} {value}")
    return 0 if state["fused"] else 1


def _cuda_kernels(architectures: Sequence[str], gpus: Sequence) -> str:
    """As `sm_80, sm_90; newer ones by the PTX of compute_90`."""
    if not architectures:
        return f"none. {cuda.CURE}" if gpus else "none"
    cubins = [a for a in architectures if a.startswith("sm_")]
    ptx = [a for a in architectures if a.startswith("compute_")]
    return "; ".join([", ".join(cubins), f"newer ones by the PTX of {', '.join(ptx)}"])


def _driver(state: dict) -> str:
    return (
        f"serves CUDA {state['driver']}" if state["driver"] else f"none: {state['why_no_driver']}"
    )


def _gpus(state: dict) -> str:
    """Those that TensorFlow sees, and which of the library's kernels each runs."""
    if not state["gpus"]:
        return "TensorFlow sees none"
    architectures = (state["record"] or {}).get("cuda", [])
    return "; ".join(
        f"{name}, compute capability {capability[0]}.{capability[1]}, runs "
        f"{cuda.image_for(architectures, capability) or 'none of the kernels'}"
        for name, capability in state["gpus"]
    )


def _list(arguments: argparse.Namespace) -> int:
    if arguments.matrix:
        _print_table(_matrix())
        return 0
    try:
        cli_tflite.whole_package()
        from keras_norms import catalog
    except ImportError as error:
        print(f"keras-norms list: {error}. Run `keras-norms doctor`.", file=sys.stderr)
        return 1
    rows = [(row.name, "yes" if row.fused else "no", row.paper) for row in catalog.CATALOG]
    _print_table([("layer", "fused", "paper"), *rows])
    return 0


def _matrix() -> list[Sequence[str]]:
    """The support matrix as the tests of this version filled it."""
    file = importlib.resources.files("keras_norms") / "support.json"
    table = json.loads(file.read_text(encoding="utf-8"))
    rows = [[name, *cells.values()] for name, cells in table["layers"].items()]
    return [["layer", *table["columns"]], *rows]


def _print_table(rows: list[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="keras-norms", description="Normalization layers for Keras and their compiled op."
    )
    parser.add_argument("--version", action="version", version=f"keras-norms {library.VERSION}")
    commands = parser.add_subparsers(metavar="command", required=True)

    text = "say what is installed, whether the compiled op works and, if not, how to mend it"
    doctor = commands.add_parser("doctor", help=text, description=text)
    doctor.add_argument("--json", action="store_true", help="print the findings as JSON")
    doctor.set_defaults(run=_doctor)

    text = "list the layers: name, whether the compiled op serves it, paper"
    lister = commands.add_parser("list", help=text, description=text)
    text = "print what each layer supports, as this version's tests found it"
    lister.add_argument("--matrix", action="store_true", help=text)
    lister.set_defaults(run=_list)

    text = "compile the op for the TensorFlow that is installed"
    builder = commands.add_parser("build", help=text, description=text)
    build.add_arguments(builder)
    builder.set_defaults(run=build.run)

    cli_tflite.add_commands(commands)

    chosen = parser.parse_args(arguments)
    return chosen.run(chosen)


if __name__ == "__main__":
    sys.exit(main())
