"""CUDA kernels as images inside the library: chosen, packed, compiled, recorded, reported."""

import locale
import shutil
import struct

import pytest
import test_build

from keras_norms import build, cli, cuda, library

sources = test_build.sources
CURE = "Run `pip install keras-norms[cuda]`, then `keras-norms build --cuda`."


@pytest.mark.parametrize(
    ("capability", "want"),
    [
        ((7, 0), None),  # V100: before all of them
        ((7, 5), "sm_75"),
        ((8, 0), "sm_80"),
        ((8, 6), "sm_86"),
        ((8, 7), "sm_86"),  # the best of the same major
        ((8, 9), "sm_86"),
        ((9, 0), "sm_90"),
        ((10, 0), "compute_90"),  # by the driver's compiler
        ((12, 1), "compute_90"),
    ],
)
def test_choice(capability, want):
    assert cuda.image_for(cuda.ARCHITECTURES, capability) == want
    assert cuda.image_for(reversed(cuda.ARCHITECTURES), capability) == want
    assert cuda.image_for([], capability) is None


def test_packed_format():
    """As custom_ops/cuda/images.h says and tests/cuda/driver_test.cc reads."""
    images = {"sm_80": b"\x7fELF eighty", "compute_90": b".version 8.5\0"}
    packed = cuda.pack(images)
    assert packed[:16] == b"KNIMAGES" + struct.pack("=II", 1, 2)
    for i, (architecture, is_ptx) in enumerate([(80, 0), (90, 1)]):
        found = struct.unpack_from("=IIQQ", packed, 16 + 24 * i)
        assert found[:2] == (architecture, is_ptx)
        assert found[2] % 16 == 0
        assert packed[found[2] : found[2] + found[3]] == list(images.values())[i]


def test_nvrtc_is_looked_for_in_its_package(tmp_path, monkeypatch):
    """A file that is no library is passed over."""
    monkeypatch.setattr(cuda, "_NVRTC", "libno_such_nvrtc.so")
    assert cuda.find_nvrtc([tmp_path]) is None
    folder = tmp_path / "nvidia" / "cuda_nvrtc" / "lib"
    folder.mkdir(parents=True)
    (folder / "libno_such_nvrtc.so").write_bytes(b"no library")
    assert cuda.find_nvrtc([tmp_path]) is None
    opened = []
    monkeypatch.setattr(cuda, "Nvrtc", opened.append)
    cuda.find_nvrtc([tmp_path])
    assert opened == [folder / "libno_such_nvrtc.so"]


@pytest.mark.skipif(cuda.find_nvrtc() is None, reason="needs NVRTC: `make build-cuda`")
def test_nvrtc_compiles():
    nvrtc = cuda.find_nvrtc()
    before = locale.getencoding()
    source, headers = b'#include "a/b.h"\nextern "C" __global__ void k() { F(); }', {}
    with pytest.raises(cuda.CudaError, match=r"NVRTC_ERROR_COMPILATION\.\n[\s\S]*k\.cu.*a/b\.h"):
        nvrtc.compile("sm_90", "k.cu", source, headers)
    headers["a/b.h"] = b"__device__ inline void F() {}"
    assert nvrtc.compile("sm_90", "k.cu", source, headers).startswith(b"\x7fELF")
    ptx = nvrtc.compile("compute_90", "k.cu", source, headers)
    assert b".entry k(" in ptx
    assert ptx.endswith(b"\0")
    assert locale.getencoding() == before


class FakeNvrtc(cuda.Nvrtc):
    version = "12.5"

    def __init__(self):
        self.compiled = []

    def compile(self, architecture, name, source, headers):
        if b"error" in source:
            raise cuda.CudaError("nvrtcCompileProgram of NVRTC fails: no good.")
        self.compiled.append(architecture)
        return f"{architecture} of {name} and {sorted(headers)}\0".encode()


@pytest.fixture
def kernels(sources, monkeypatch):
    """`custom_ops` of test_build with one CUDA kernel, and what embeds it."""
    (sources / "cuda").mkdir()
    for name in ("embedded.cc", "images.h"):
        shutil.copy(test_build.ROOT / "custom_ops" / "cuda" / name, sources / "cuda")
    (sources / "cuda" / "kernels.cu").write_text('#include "custom_ops/core/one.h"\n')
    (sources / "cuda" / "use.cc").write_text(  # what is not used is not linked
        '#include "custom_ops/cuda/images.h"\n'
        'extern "C" __attribute__((visibility("default"))) const void* Go() {\n'
        "  return keras_norms::gpu::EmbeddedImages().data;\n}\n"
    )
    names = ("custom_ops/cuda/embedded.cc", "custom_ops/cuda/use.cc")
    monkeypatch.setattr(build, "CUDA_SOURCES", names)
    return sources / "cuda" / "kernels.cu"


def compile_op(nvrtc, monkeypatch, **arguments):
    """The lines reported, and what the library's record says of CUDA."""
    library._digest.cache_clear()
    monkeypatch.setattr(cuda, "find_nvrtc", lambda folders=(): nvrtc)
    lines = []
    path = build.build(report=lines.append, **arguments)
    return lines, tuple(library.read_record(path)["cuda"])


@test_build.needs_compiler
def test_library_with_cuda_kernels(kernels, monkeypatch):
    nvrtc = FakeNvrtc()
    lines, record = compile_op(nvrtc, monkeypatch, cuda=True)
    assert record == cuda.ARCHITECTURES
    assert sorted(nvrtc.compiled) == sorted(cuda.ARCHITECTURES)
    assert "CUDA kernels by NVRTC 12.5:" in lines
    images = {
        a: f"{a} of custom_ops/cuda/kernels.cu and ['custom_ops/core/one.h']\0".encode()
        for a in cuda.ARCHITECTURES
    }
    assert cuda.pack(images) in library.library_path().read_bytes()
    # Images are kept; a change of a header compiles for each architecture.
    (kernels.parent.parent / "core" / "two.cc").write_text("int Two() { return 22; }\n")
    compile_op(nvrtc, monkeypatch, cuda=True)
    assert len(nvrtc.compiled) == len(cuda.ARCHITECTURES)
    (kernels.parent.parent / "core" / "one.h").write_text("int One();  // changed\n")
    compile_op(nvrtc, monkeypatch, cuda=True)
    assert len(nvrtc.compiled) == 2 * len(cuda.ARCHITECTURES)


@test_build.needs_compiler
def test_a_library_is_built_anew_for_cuda(kernels, monkeypatch):
    """When that is asked for, and kept where it has what is wanted, or more."""

    def is_kept(lines):
        return len(lines) == 1 and lines[0].endswith("nothing to do.")

    lines, record = compile_op(FakeNvrtc(), monkeypatch)
    assert record == ()
    assert "For the CPU only; `keras-norms build --cuda` adds kernels for GPUs." in lines
    assert is_kept(compile_op(FakeNvrtc(), monkeypatch)[0])
    assert compile_op(FakeNvrtc(), monkeypatch, cuda=True)[1] == cuda.ARCHITECTURES
    assert is_kept(compile_op(FakeNvrtc(), monkeypatch, cuda=True)[0])
    assert is_kept(compile_op(None, monkeypatch)[0])
    # What the library has is not lost when it is built anew.
    assert compile_op(FakeNvrtc(), monkeypatch, force=True)[1] == cuda.ARCHITECTURES
    assert compile_op(None, monkeypatch, cuda=False)[1] == ()


def test_cuda_without_nvrtc(kernels, monkeypatch):
    with pytest.raises(build.BuildError) as caught:
        compile_op(None, monkeypatch, cuda=True)
    assert str(caught.value) == f"There is no NVRTC (libnvrtc.so.12). {CURE}"


@test_build.needs_compiler
def test_kernels_that_do_not_compile(kernels, monkeypatch):
    kernels.write_text("error\n")
    with pytest.raises(build.BuildError) as caught:
        compile_op(FakeNvrtc(), monkeypatch, cuda=True)
    assert str(caught.value).startswith("Compiling custom_ops/cuda/kernels.cu for ")
    assert "nvrtcCompileProgram of NVRTC fails: no good." in str(caught.value)


def test_sources_are_there():
    root = library.sources_dir().parent
    for name in (*build.CUDA_SOURCES, build.KERNELS):
        assert (root / name).is_file()


# The doctor ------------------------------------------------------------------------------------


def test_doctor_names_the_architectures():
    assert cli._cuda_kernels(cuda.ARCHITECTURES, []) == (
        "sm_75, sm_80, sm_86, sm_90; newer ones by the PTX of compute_90"
    )
    assert cli._cuda_kernels([], []) == "none"
    assert cli._cuda_kernels([], [["H200", [9, 0]]]) == f"none. {CURE}"


def test_doctor_names_the_gpus():
    state = {"gpus": [], "record": {"cuda": list(cuda.ARCHITECTURES)}}
    assert cli._gpus(state) == "TensorFlow sees none"
    state["gpus"] = [["NVIDIA H200", [9, 0]], ["Tesla V100", [7, 0]]]
    assert cli._gpus(state) == (
        "NVIDIA H200, compute capability 9.0, runs sm_90; "
        "Tesla V100, compute capability 7.0, runs none of the kernels"
    )


def test_doctor_tells_why_there_is_no_driver(monkeypatch):
    monkeypatch.setattr(cuda, "_DRIVER", "libno_such_driver.so")
    with pytest.raises(OSError, match=r"^libno_such_driver\.so: cannot open shared object file"):
        cuda.driver_version()
    assert cli._driver({"driver": None, "why_no_driver": "gone"}) == "none: gone"
    assert cli._driver({"driver": "12.8"}) == "serves CUDA 12.8"


@pytest.mark.parametrize("architectures", [(), cuda.ARCHITECTURES])
def test_doctor_has_a_cure_for_a_gpu_without_kernels(architectures, monkeypatch):
    monkeypatch.setattr(library, "refusal", lambda path: None)
    state = {
        "platform": "Linux x86_64",
        "packages": {"keras": "3", "tensorflow": "2"},
        "backend": "tensorflow",
        "library": "a.so",
        "gpus": [["Tesla V100", [7, 0]]],
        "record": {"cuda": architectures},
        "why_not": "The library has no CUDA kernels for it.",
    }
    hidden = "The portable path serves the GPU; CUDA_VISIBLE_DEVICES=-1 hides it."
    assert cli._cure(state) == (hidden if architectures else f"{CURE} {hidden}")
