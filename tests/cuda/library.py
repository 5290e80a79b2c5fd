"""Builds what the tests of the launches need: `library.py LIBRARY IMAGES`.

LIBRARY is the compiled op with its CUDA kernels registered for the CPU, where fake_driver.cc runs
them, in place of the CPU's own. IMAGES are the compiled kernels, as the op has them inside.
"""

import argparse
import shutil
from pathlib import Path

from keras_norms import build, compiling

OF_THE_CPU = ("cpu_kernels.cc", "xla_cpu.cc")
OF_THE_GPU = ("gpu_kernels.cc", "xla_gpu.cc")


def for_the_cpu(units):
    for unit in units:
        if unit.source.name in OF_THE_GPU:
            flags = (*unit.flags, "-DKERAS_NORMS_CUDA_ON_CPU")
            yield unit._replace(flags=flags, key=f"{unit.key}-cpu")
        elif unit.source.name not in OF_THE_CPU:
            yield unit


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("library", type=Path)
    parser.add_argument("images", type=Path)
    chosen = parser.parse_args()
    toolchain, compiler = build.find_tensorflow(), build.find_compiler()
    nvrtc = build._find_nvrtc(Path(toolchain.directory))
    jobs = compiling.default_jobs()
    images = build.compile_images(nvrtc, jobs=jobs)
    chosen.images.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(images, chosen.images)
    units = list(for_the_cpu(build._units(toolchain, compiler, images)))
    how = {"verbose": False, "report": print}
    by_compiler = compiling.by_compiler(compiler, **how)
    objects = compiling.compile_all(units, by_compiler, force=False, jobs=jobs, report=print)
    build._link(objects, toolchain, compiler, chosen.library, **how)


if __name__ == "__main__":
    main()
