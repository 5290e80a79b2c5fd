"""What must move: bytes that any implementation has to, and tensors that ours does."""

import re
from collections.abc import Iterable

from benchmarks.gpu.cases import BACKWARD, FORWARD, Case

# Tensors of x's size that a kernel reads or writes, by its name without dtype and width.
TENSORS = {
    **{"rows_forward": 2, "rows_backward": 3, "slices_forward": 2, "slices_backward": 3},
    **{"lanes_moments": 1, "lanes_sums": 2, "segment_moments": 1, "segment_sums": 2},
    **{"apply": 2, "gradient": 3, "gradient_rows": 3},
    **{"merge_moments": 0, "merge_sums": 0, "sum_parts": 0, "moments_coefficients": 0},
}
LEAST = {FORWARD: 2, BACKWARD: 3}  # x, y; dy, x, dx


def step(kernel: str) -> str:
    """A kernel's name without its dtype and width."""
    return re.sub(r"_(float32|bfloat16|float16)x\d+$", "", kernel)


def tensors(kernels: Iterable[str]) -> int:
    """That these launches move. KeyError: a kernel that TENSORS does not know."""
    return sum(TENSORS[step(kernel)] for kernel in kernels)


def least_bytes(case: Case, passes: str) -> int:
    """That must move; parameters and statistics count where they are over 1 % of it."""
    k = case.geometry
    both = case.layer != "rms"
    parameters, units = k.g * k.d * (2 if both else 1), k.n * k.g * (2 if both else 1)
    # gamma, beta, mean, variance; gamma, mean, variance, dgamma, dbeta
    small = 4 * (parameters + units + (k.g * k.d if passes == BACKWARD else 0))
    large = LEAST[passes] * case.bytes
    return large + (small if small > 0.01 * large else 0)


def own_bytes(case: Case, passes: str, kernels: Iterable[str]) -> int:
    """The same for the tensors that ours moves."""
    return least_bytes(case, passes) + (tensors(kernels) - LEAST[passes]) * case.bytes
