"""The CUDA kernels compiled into one file: `python benchmarks/gpu/images.py OUTPUT`.

Needs NVRTC and neither Keras nor TensorFlow. The images are those of `keras-norms build`, kept with
its objects.
"""

import os
import shutil
import sys
from pathlib import Path


def main() -> int:
    # As a file: as a part of keras_norms it would import Keras.
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "keras_norms"))
    import build

    (output,) = sys.argv[1:]
    nvrtc = build.nvidia.find_nvrtc()
    if nvrtc is None:
        print(f"There is no NVRTC (libnvrtc.so.12). {build.nvidia.CURE}", file=sys.stderr)
        return 1
    images = build.compile_images(nvrtc, jobs=os.cpu_count() or 1)
    Path(output).parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(images, output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
