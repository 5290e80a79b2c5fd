"""The six functions on small shapes, for compute-sanitizer: `python -m benchmarks.gpu.small`.

No PyTorch: its allocator and its kernels would hide errors and add others. Memory comes from the
driver, one allocation a buffer, and only what a function reads has been written.
"""

import ctypes
import itertools
import sys
from ctypes import byref, c_int, c_size_t, c_uint64, c_void_p

import numpy as np

from benchmarks.gpu.cases import DTYPES, EPSILON, ITEM_BYTES, LARGE, SMALL, Geometry
from benchmarks.gpu.library import ACTIVATIONS, Library


class Memory:
    """Of the first device, whose context it makes current."""

    def __init__(self):
        self._driver = ctypes.CDLL("libcuda.so.1")
        device, context = c_int(), c_void_p()
        self._call("cuInit", 0)
        self._call("cuDeviceGet", byref(device), 0)
        self._call("cuDevicePrimaryCtxRetain", byref(context), device)
        self._call("cuCtxPushCurrent_v2", context)

    def new(self, size: int) -> int:
        """An allocation, nothing written to it."""
        address = c_uint64()
        self._call("cuMemAlloc_v2", byref(address), c_size_t(max(size, 1)))
        return address.value

    def put(self, array: np.ndarray) -> int:
        address = self.new(array.nbytes)
        self._call("cuMemcpyHtoD_v2", c_uint64(address), _data(array), c_size_t(array.nbytes))
        return address

    def get(self, address: int, like: np.ndarray) -> np.ndarray:
        found = np.empty_like(like)
        self._call("cuMemcpyDtoH_v2", _data(found), c_uint64(address), c_size_t(found.nbytes))
        return found

    def free(self, addresses) -> None:
        for address in addresses:
            self._call("cuMemFree_v2", c_uint64(address))

    def _call(self, function: str, *arguments) -> None:
        if code := getattr(self._driver, function)(*arguments):
            raise OSError(f"{function} of the CUDA driver fails: {code}")


def _data(array: np.ndarray) -> c_void_p:
    return array.ctypes.data_as(c_void_p)


def encoded(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values in the dtype; bfloat16, which NumPy lacks, as its bits, cut off."""
    if dtype == "bfloat16":
        return (values.astype("float32").view("uint32") >> 16).astype("uint16")
    return values.astype(dtype)


def decoded(array: np.ndarray, dtype: str) -> np.ndarray:
    if dtype == "bfloat16":
        return (array.astype("uint32") << 16).view("float32")
    return array.astype("float32")


def run(library, memory, k: Geometry, dtype: str, activation: str, subtract_mean: bool) -> set[str]:
    """All six functions. Returns the kernels that ran; ValueError: a result is not finite."""
    draw, kernels, taken = np.random.default_rng(0), set(), []

    def put(size, mean=0.0, kind="float32"):
        values = encoded(draw.normal(mean, 1, size).astype("float32"), kind)
        taken.append(memory.put(values))
        return taken[-1]

    def new(size, item=4):
        taken.append(memory.new(size * item))
        return taken[-1]

    units, channels, lanes = k.n * k.g, k.g * k.d, k.n * k.g * k.d
    item = ITEM_BYTES[dtype]
    x, dy, gamma, beta = put(k.size, 3, dtype), put(k.size, 0, dtype), put(channels), put(channels)
    center, scale, shift = put(lanes, 3), put(lanes), put(lanes)
    mean, residual, variance = (new(units) for _ in range(3))
    dmean, dvariance = put(units), put(units)
    y, dx = new(k.size, item), new(k.size, item)
    dgamma, dbeta, dscale, dshift = new(channels), new(channels), new(lanes), new(lanes)
    workspace = new(library.workspace_bytes(dtype, k), 1)
    how = EPSILON, subtract_mean, activation
    tail = workspace, None
    statistics = mean, residual, variance
    calls = (
        ("normalize", (x, gamma, beta, *how, y, mean, variance, *tail)),
        (
            "normalize_grad",
            (dy, x, gamma, beta, mean, variance, *how, dx, dgamma, dbeta, *tail),
        ),
        ("moments", (x, subtract_mean, *statistics, *tail)),
        ("moments_grad", (x, mean, residual, dmean, dvariance, dx, *tail)),
        ("scale_shift", (x, center, scale, shift, activation, y, None)),
        ("scale_shift_grad", (dy, x, center, scale, shift, activation, dx, dscale, dshift, *tail)),
    )
    outputs = {mean: units, residual: units, variance: units, dgamma: channels, dbeta: channels}
    outputs |= {dscale: lanes, dshift: lanes, y: k.size, dx: k.size}
    try:
        for name, arguments in calls:
            getattr(library, name)(dtype, k, *arguments)
            kernels |= set(library.kernels)
            for address in outputs.keys() & {a for a in arguments if type(a) is int}:
                kind = dtype if address in (y, dx) else "float32"
                like = encoded(np.zeros(outputs[address], "float32"), kind)
                if not np.isfinite(decoded(memory.get(address, like), kind)).all():
                    raise ValueError(f"{name} of {k} in {dtype} gives what is not finite.")
    finally:
        memory.free(taken)
    return kernels


def main() -> int:
    library, memory, kernels = Library(), Memory(), set()
    for dtype, once in itertools.product(DTYPES, (True, False)):
        library.read_once(once)
        for i, k in enumerate(SMALL):
            for activation in ("none", ACTIVATIONS[1 + i % 3]):
                kernels |= run(library, memory, k, dtype, activation, i % 4 != 3)
        if once and dtype == DTYPES[0]:  # enough of it
            kernels |= run(library, memory, LARGE, dtype, "none", True)
    print(f"{len(kernels)} kernels ran: {' '.join(sorted(kernels))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
