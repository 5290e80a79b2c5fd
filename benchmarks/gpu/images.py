"""Compiles the CUDA kernels into one file: `python benchmarks/gpu/images.py OUTPUT [sm_90 ...]`.

Imports neither Keras nor TensorFlow; needs NVRTC. The images are those of `keras-norms build`.
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "custom_ops/cuda/kernels.cu"


def main() -> int:
    sys.path.insert(0, str(ROOT / "keras_norms"))  # as a part of keras_norms it would import Keras
    import cuda

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("output", type=Path)
    parser.add_argument("architectures", nargs="*", default=cuda.ARCHITECTURES)
    chosen = parser.parse_args()
    nvrtc = cuda.find_nvrtc()
    if nvrtc is None:
        print("There is no NVRTC (libnvrtc.so.12). Run `make build-cuda`.", file=sys.stderr)
        return 1
    headers = {
        file.relative_to(ROOT).as_posix(): file.read_bytes()
        for file in sorted(ROOT.glob("custom_ops/c*/*.h"))
    }
    images = {}
    for architecture in chosen.architectures:
        print(f"{SOURCE} {architecture}", flush=True)
        source = (ROOT / SOURCE).read_bytes()
        images[architecture] = nvrtc.compile(architecture, SOURCE, source, headers)
    chosen.output.parent.mkdir(parents=True, exist_ok=True)
    chosen.output.write_bytes(cuda.pack(images))
    return 0


if __name__ == "__main__":
    sys.exit(main())
