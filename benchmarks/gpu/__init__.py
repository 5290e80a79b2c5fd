"""Checks and times the CUDA kernels on a machine with an NVIDIA GPU; README.md says how.

    python -m benchmarks.gpu [--check] [--time] [--sanitize] [--quick] [--json FILE]

The kernels come as a library of their own (library.cc, `make gpu-harness`), without TensorFlow.
`cases` says what is measured, `check` holds the kernels to `reference`, `columns` says how each
peer computes a case, `timing` how it is timed, `floors` what must move, `results` what is kept and
what follows from it. `tensorflow_check` stands apart: the op inside of TensorFlow.
"""
