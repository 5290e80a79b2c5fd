"""Calls in another process, which may die: TensorFlow's quantizer ends it at some networks."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any


class Isolated:
    """One process for many calls, and a new one only after it has died."""

    def __init__(self):
        self.pool = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.pool is not None:
            self.pool.shutdown()

    def __call__(self, function: Callable, *arguments: Any) -> Any:
        """What the function returns. Both ways by pickle.

        Raises: what it raises; RuntimeError, if the process died.
        """
        if self.pool is None:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(1, mp_context=context)
        try:
            return self.pool.submit(function, *arguments).result()
        except BrokenProcessPool as error:
            self.pool = None
            raise RuntimeError("The process died.") from error
