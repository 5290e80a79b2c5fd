"""The compiled op: finds, checks and loads its library, and calls its ops.

The only room that knows the library. It is loaded once, when `keras_norms` is imported, because
XLA takes note of an op only up to the first compilation in the process.
"""

import ctypes
import functools
import sys

import keras
import numpy as np

from keras_norms import cuda, library

ACTIVATIONS = ("relu", "silu", "gelu")  # that the op applies in the same pass; gelu by erf
DTYPES = ("float16", "bfloat16", "float32", "float64")
GPU_DTYPES = DTYPES[:3]
# These modules stand on the Python stack when a trace is made for a file.
_EXPORTERS = ("keras.src.export", "tensorflow.python.saved_model", "tensorflow.lite.python")
_TOO_LATE = (
    "XLA compiled a function before `import keras_norms`, so it does not know the op: "
    "import keras_norms first."
)

_ops = None
_simd = None
_in_xla = False
_architectures = ()  # of the CUDA kernels in the library
why_not: str | None = None


def available() -> bool:
    """Whether the library is loaded."""
    return _ops is not None


def info() -> dict:
    """What `keras_norms.kernel_info()` says of the library."""
    path = library.library_path()
    record = library.read_record(path) or {}
    return {
        "fused": available(),
        "library": str(path) if path.is_file() else None,
        "tensorflow": record.get("tensorflow"),
        "devices": _devices() if available() else (),
        "simd": _simd,
        "why_not": why_not,
    }


@functools.cache
def gpus() -> tuple[tuple[str, tuple[int, int]], ...]:
    """Name and compute capability of the GPUs that TensorFlow sees: what is hidden is not there."""
    found = []
    for gpu in tf.config.get_visible_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpu)
        found.append(
            (details.get("device_name", gpu.name), details.get("compute_capability", (0, 0)))
        )
    return tuple(found)


def _devices() -> tuple[str, ...]:
    """What the op runs on, here."""
    gpu = bool(gpus()) and why_not_gpu() is None
    return ("CPU", *["XLA:CPU"] * _in_xla, *["GPU"] * gpu, *["XLA:CUDA"] * (gpu and _in_xla))


def why_not_gpu() -> str | None:
    """Why the library cannot serve the GPUs that TensorFlow sees; None if it can, or sees none."""
    if not gpus():
        return None
    if not _architectures:
        return f"TensorFlow sees a GPU and the library has no CUDA kernels. {cuda.CURE}"
    for name, capability in gpus():
        if cuda.image_for(_architectures, capability) is None:
            return (
                f"The library has no CUDA kernels for {name}, which has compute capability "
                f"{'.'.join(map(str, capability))}, but for {', '.join(_architectures)}."
            )
    return None


def unusable_here(x) -> str | None:
    """Why the op cannot serve this tensor where this line runs; None if it can."""
    if not tf.is_tensor(x) or isinstance(x, tf.RaggedTensor | tf.SparseTensor):
        return f"the input is no dense tensor of TensorFlow but {type(x).__name__}."
    if x.dtype.name not in DTYPES:
        return f"the op is for {', '.join(DTYPES)}; the input is {x.dtype.name}."
    if gpus():
        # Also for what is placed on the CPU: where a graph will run is not known when it is traced.
        if reason := why_not_gpu():
            return reason
        if x.dtype.name not in GPU_DTYPES:
            return f"on a GPU the op is for {', '.join(GPU_DTYPES)}; the input is {x.dtype.name}."
    if tf.executing_eagerly():
        return None
    if not _in_xla and _traced_for_xla():
        return _TOO_LATE
    return None


def normalize(x, geometry, gamma, beta, epsilon, subtract_mean, activation="none"):
    """`KerasNorms>Normalize`: y, mean and variance; `activation` is "none" or of ACTIVATIONS."""
    high = float(np.float32(epsilon))
    return _ops.keras_norms_normalize(
        x=x,
        gamma=_or_empty(gamma, x),
        beta=_or_empty(beta, x),
        **_axes(geometry),
        groups=geometry.groups,
        epsilon=high,
        epsilon_low=epsilon - high,
        subtract_mean=subtract_mean,
        has_gamma=gamma is not None,
        has_beta=beta is not None,
        activation=activation,
    )


def scale_shift(x, geometry, center, scale, shift, activation="none"):
    """`KerasNorms>ScaleShift`: activation((x - center) * scale + shift)."""
    return _ops.keras_norms_scale_shift(
        x=x,
        center=_or_empty(center, x),
        scale=scale,
        shift=_or_empty(shift, x),
        **_axes(geometry),
        has_center=center is not None,
        has_shift=shift is not None,
        activation=activation,
    )


def moments(x, geometry, subtract_mean=True):
    """`KerasNorms>Moments`: mean, residual (the exact mean is their sum) and variance."""
    return _ops.keras_norms_moments(
        x=x,
        U=_wide(x),
        **_axes(geometry),
        groups=geometry.groups,
        subtract_mean=subtract_mean,
    )


def _axes(geometry) -> dict:
    return {
        "sample_axes": geometry.samples,
        "before_axes": geometry.before,
        "channel_axes": geometry.channels,
    }


def _or_empty(parameter, x):
    if parameter is not None:
        return parameter
    return tf.constant([], _wide(x))


def _wide(x):
    """The type of parameters and statistics."""
    return tf.float64 if x.dtype == tf.float64 else tf.float32


def exporting() -> bool:
    """Whether this trace is written to a file, which must hold built-in ops only."""
    if keras.backend.backend() != "tensorflow" or tf.executing_eagerly():
        return False
    frame = sys._getframe(1)
    while frame is not None:
        if (frame.f_globals.get("__name__") or "").startswith(_EXPORTERS):
            return True
        frame = frame.f_back
    return False


def _traced_for_xla() -> bool:
    return control_flow_util.GraphOrParentsInXlaContext(tf.compat.v1.get_default_graph())


def _xla_has_compiled() -> bool:
    """Whether XLA has taken note of its ops already: then those kernels are registered."""
    devices = [k.device_type for k in kernels.get_registered_kernels_for_op("AddV2").kernel]
    return any("XLA" in device and "JIT" in device for device in devices)


# ---- Loading ----------------------------------------------------------------------------------


def _load():
    global _ops, _simd, _in_xla, _architectures, why_not
    path = library.library_path()
    why_not = library.refusal(path, tf.__version__)
    if why_not:
        return
    late = _xla_has_compiled()
    try:
        _ops = tf.load_op_library(str(path))
    except (tf.errors.OpError, OSError) as error:
        why_not = f"{path} does not load: {str(error).splitlines()[0]} {library.CURE}"
        return
    fused_gradients.register(_ops)
    _in_xla = not late
    _architectures = tuple(library.read_record(path)["cuda"])
    target = ctypes.CDLL(str(path)).keras_norms_simd_target
    target.restype = ctypes.c_char_p
    _simd = target().decode()


if keras.backend.backend() == "tensorflow":
    import tensorflow as tf
    from tensorflow.python.framework import kernels
    from tensorflow.python.ops import control_flow_util

    from keras_norms import fused_gradients

    _load()
else:
    why_not = f"the op is for Keras' TensorFlow backend; this is {keras.backend.backend()}."
