"""The kernels by ctypes: library.cc's functions on tensors of PyTorch or arrays of NumPy."""

import ctypes
from ctypes import c_char_p, c_double, c_int, c_int64, c_void_p
from pathlib import Path

from benchmarks.gpu.cases import Geometry

DEFAULT = Path(__file__).resolve().parents[2] / "build" / "gpu" / "libkn_gpu.so"
DTYPES = {"float32": 0, "bfloat16": 1, "float16": 2}
ACTIVATIONS = ("none", "relu", "silu", "gelu")

# After dtype and geometry; "p" is a pointer, "d" a double, "i" an int.
SIGNATURES = {
    "normalize": "pppdiipppp" + "p",
    "normalize_grad": "ppppppdiipppp" + "p",
    "moments": "pipppp" + "p",
    "moments_grad": "ppppppp" + "p",
    "scale_shift": "ppppip" + "p",
    "scale_shift_grad": "pppppipppp" + "p",
}
_TYPES = {"p": c_void_p, "d": c_double, "i": c_int}


class GpuError(RuntimeError):
    """A function of the library fails; the message is the library's."""


class Library:
    """Each function takes the dtype's name, the geometry and then what library.cc names.

    Pointers are tensors, arrays, numbers or None; the last one is the stream.
    """

    def __init__(self, path: Path = DEFAULT):
        if not Path(path).is_file():
            raise GpuError(f"{path} is missing. `make gpu-harness` builds it.")
        self._library = ctypes.CDLL(str(path))
        for name, letters in SIGNATURES.items():
            found = getattr(self._library, f"kn_gpu_{name}")
            found.argtypes = [c_int, *[c_int64] * 5, *(_TYPES[letter] for letter in letters)]
            found.restype = c_int
        self._workspace = self._library.kn_gpu_workspace_bytes
        self._workspace.argtypes, self._workspace.restype = [c_int, *[c_int64] * 5], c_int64
        self._library.kn_gpu_read_once.argtypes = [c_int]
        self._library.kn_gpu_read_once.restype = None
        for name in ("error", "kernels", "commit"):
            getattr(self._library, f"kn_gpu_{name}").restype = c_char_p

    @property
    def commit(self) -> str:
        return self._library.kn_gpu_commit().decode()

    @property
    def kernels(self) -> list[str]:
        """That this thread's last call launched."""
        return self._library.kn_gpu_kernels().decode().split()

    def read_once(self, yes: bool) -> None:
        """Whether blocks hold together what they can; False: as on devices without clusters."""
        self._library.kn_gpu_read_once(int(yes))

    def workspace_bytes(self, dtype: str, geometry: Geometry) -> int:
        found = self._workspace(DTYPES.get(dtype, -1), *geometry)
        if found < 0:
            raise self._error("workspace_bytes")
        return found

    def normalize(self, dtype, geometry, *arguments):
        self._call("normalize", dtype, geometry, arguments)

    def normalize_grad(self, dtype, geometry, *arguments):
        self._call("normalize_grad", dtype, geometry, arguments)

    def moments(self, dtype, geometry, *arguments):
        self._call("moments", dtype, geometry, arguments)

    def moments_grad(self, dtype, geometry, *arguments):
        self._call("moments_grad", dtype, geometry, arguments)

    def scale_shift(self, dtype, geometry, *arguments):
        self._call("scale_shift", dtype, geometry, arguments)

    def scale_shift_grad(self, dtype, geometry, *arguments):
        self._call("scale_shift_grad", dtype, geometry, arguments)

    def _call(self, name, dtype, geometry, arguments):
        function = getattr(self._library, f"kn_gpu_{name}")
        if function(DTYPES.get(dtype, -1), *geometry, *map(_argument, arguments)):
            raise self._error(name)

    def _error(self, name: str) -> GpuError:
        return GpuError(f"kn_gpu_{name}: {self._library.kn_gpu_error().decode()}")


def _argument(value):
    if hasattr(value, "data_ptr"):  # of PyTorch
        return value.data_ptr()
    if hasattr(value, "ctypes"):  # of NumPy
        return value.ctypes.data
    return ACTIVATIONS.index(value) if isinstance(value, str) else value
