"""A row kernel as one writes it in Triton: the whole row in one block, warps by its size.

The number of warps (4, 8, 16, 32) follows the rule of the Liger kernels (linkedin/Liger-Kernel,
ops/utils.py). Rows of up to 65536 elements.
"""

import torch
import triton
import triton.language as tl

MOST = 65536


@triton.jit
def _normalize(x, gamma, beta, y, size, epsilon, RMS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * size
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    values = tl.load(x + row + columns, mask=inside, other=0.0).to(tl.float32)
    weights = tl.load(gamma + columns, mask=inside, other=0.0)
    centred = values if RMS else tl.where(inside, values - tl.sum(values, 0) / size, 0.0)
    rstd = tl.rsqrt(tl.sum(centred * centred, 0) / size + epsilon)
    result = centred * rstd * weights
    if not RMS:
        result += tl.load(beta + columns, mask=inside, other=0.0)
    tl.store(y + row + columns, result, mask=inside)


def forward(x, gamma, beta, y, epsilon: float, rms: bool) -> torch.Tensor:
    """y of `x[rows, size]`; gamma and beta are float32."""
    rows, size = x.shape
    block = triton.next_power_of_2(size)
    if block > MOST:
        raise NotImplementedError(f"The row is longer than a block of {MOST}.")
    warps = next(w for least, w in ((32768, 32), (8192, 16), (2048, 8), (0, 4)) if block >= least)
    _normalize[(rows,)](x, gamma, beta, y, size, epsilon, rms, block, num_warps=warps)
    return y
