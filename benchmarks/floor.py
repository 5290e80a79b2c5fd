"""What a row must move through memory, in copies of x: x read once and written once.

    forward              1.0   x read, y written
    forward+backward     2.5   and dy and x read, dx written

The statistics over a batch are known when all of it has been read, so where it does not stay in
the cache it is read again, in the forward pass x (0.5 more), in the backward pass dy and x (1.0
more). Other statistics are of a sample or a row, which is taken to stay there.
"""

from benchmarks.cases import BOTH, FORWARD, INFERENCE, NORMS, Case

CLOSE = 1.5  # times its floor: what a kernel is meant to stay within
LARGE = 12_000_000  # bytes of x from which on that counts; below, starting the op shows


def copies(case: Case, passes: str, cache: int | None = None) -> float | None:
    """The floor of a row; None for models and for layers of which it is not stated.

    Args:
        cache: bytes of the last level. None: any tensor stays in it.
    """
    if case.model or case.layer not in NORMS:
        return None
    over_batch = case.layer == "BatchNormalization" and case.training and cache is not None
    forward = 1.5 if over_batch and case.bytes > cache else 1.0
    backward = 2.5 if over_batch and 2 * case.bytes > cache else 1.5
    return {FORWARD: forward, INFERENCE: forward, BOTH: forward + backward}[passes]
