"""The CUDA kernels as images for GPUs, and what is needed to run them. Standard library only.

There is no CUDA toolkit in this: NVRTC, a library that pip brings, compiles the kernels without a
GPU, and the driver of the GPU's machine loads what is compiled. The library holds machine code for
each generation of GPUs from Turing to Hopper, and PTX, which the driver compiles for newer ones.
Ada (8.9) runs that of sm_86: these kernels would use no instruction that it lacks.
"""

import contextlib
import ctypes
import struct
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

# sm_*: machine code of a compute capability; compute_*: PTX of one, for that and all newer.
ARCHITECTURES = ("sm_75", "sm_80", "sm_86", "sm_90", "compute_90")
CURE = "Run `pip install keras-norms[cuda]`, then `keras-norms build --cuda`."

_NVRTC = "libnvrtc.so.12"  # CUDA 12, as TensorFlow's: images load in the drivers that it needs
_DRIVER = "libcuda.so.1"


def options(architecture: str) -> tuple[str, ...]:
    """NVRTC's for one of ARCHITECTURES."""
    return "--std=c++17", f"--gpu-architecture={architecture}"


class CudaError(RuntimeError):
    """NVRTC fails; the message has its log."""


@contextlib.contextmanager
def _same_locale():
    """NVRTC leaves the thread with the locale "C", in which Python takes all text for ASCII."""
    use = ctypes.CDLL(None).uselocale
    use.argtypes, use.restype = [ctypes.c_void_p], ctypes.c_void_p
    before = use(None)
    try:
        yield
    finally:
        use(before)


class Nvrtc:
    """A loaded NVRTC."""

    def __init__(self, path: str | Path):
        self._library = ctypes.CDLL(str(path))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def compile(self, architecture: str, name: str, source: bytes, headers: Mapping) -> bytes:
        """The image for one of ARCHITECTURES.

        Args:
            name: of the source, for messages.
            headers: the contents of all included files, by the names they are included by.
        """
        program = ctypes.c_void_p()
        texts = (ctypes.c_char_p * len(headers))(*headers.values())
        names = (ctypes.c_char_p * len(headers))(*(n.encode() for n in headers))
        create = (source, name.encode(), len(headers), texts, names)
        with _same_locale():
            self._call("nvrtcCreateProgram", ctypes.byref(program), *create)
            return self._compiled(architecture, program)

    def _compiled(self, architecture: str, program: ctypes.c_void_p) -> bytes:
        try:
            given = [option.encode() for option in options(architecture)]
            array = (ctypes.c_char_p * len(given))(*given)
            try:
                self._call("nvrtcCompileProgram", program, len(given), array)
            except CudaError as error:
                log = self._result("ProgramLog", program).rstrip(b"\0").decode(errors="replace")
                raise CudaError(f"{error}\n{log}") from None
            is_ptx = architecture.startswith("compute_")
            return self._result("PTX" if is_ptx else "CUBIN", program)  # PTX ends with a 0
        finally:
            self._call("nvrtcDestroyProgram", ctypes.byref(program))

    def _result(self, kind: str, program: ctypes.c_void_p) -> bytes:
        size = ctypes.c_size_t()
        self._call(f"nvrtcGet{kind}Size", program, ctypes.byref(size))
        content = ctypes.create_string_buffer(size.value)
        self._call(f"nvrtcGet{kind}", program, content)
        return content.raw

    def _call(self, function: str, *arguments) -> None:
        if code := getattr(self._library, function)(*arguments):
            explain = self._library.nvrtcGetErrorString
            explain.restype = ctypes.c_char_p
            raise CudaError(f"{function} of NVRTC fails: {explain(code).decode()}.")


def find_nvrtc(site_packages: Iterable[Path] = ()) -> Nvrtc | None:
    """NVRTC from the package nvidia-cuda-nvrtc-cu12, else from where the loader looks; or None.

    Args:
        site_packages: folders to look in before those of this interpreter.
    """
    folders = [*site_packages, *map(Path, sys.path)]
    for path in (*(f / "nvidia" / "cuda_nvrtc" / "lib" / _NVRTC for f in folders), _NVRTC):
        if path == _NVRTC or path.is_file():
            try:
                return Nvrtc(path)
            except OSError:  # not there, or for another machine
                continue
    return None


def pack(images: Mapping[str, bytes]) -> bytes:
    """The images by architecture in one block, as custom_ops/cuda/images.h describes it."""
    head, entry = struct.Struct("=8sII"), struct.Struct("=IIQQ")
    table, content = bytearray(), bytearray()
    first = head.size + entry.size * len(images)
    for architecture, image in images.items():
        content += bytes(-(first + len(content)) % 16)
        kind, _, number = architecture.partition("_")
        table += entry.pack(int(number), kind == "compute", first + len(content), len(image))
        content += image
    return head.pack(b"KNIMAGES", 1, len(images)) + bytes(table) + bytes(content)


def image_for(architectures: Iterable[str], capability: tuple[int, int]) -> str | None:
    """Which of the architectures a GPU runs, by the rule of custom_ops/cuda/images.h; or None."""
    major, minor = capability
    cubins, ptx = [], []
    for architecture in architectures:
        kind, _, digits = architecture.partition("_")
        number = int(digits)
        if number <= 10 * major + minor:
            if kind == "compute":
                ptx.append((number, architecture))
            elif number // 10 == major:
                cubins.append((number, architecture))
    return max(cubins or ptx, default=(0, None))[1]


def driver_version() -> str:
    """The CUDA version that the installed driver serves, as "12.8".

    Raises: OSError, with the reason why there is none that works.
    """
    driver = ctypes.CDLL(_DRIVER)
    if code := driver.cuInit(0):
        text = ctypes.c_char_p()
        driver.cuGetErrorString(code, ctypes.byref(text))
        raise OSError(f"cuInit fails: {(text.value or b'unknown error').decode()}")
    version = ctypes.c_int()
    driver.cuDriverGetVersion(ctypes.byref(version))
    return f"{version.value // 1000}.{version.value % 1000 // 10}"
