"""Says what a conversion is at, to who listens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def say(step: str) -> None:
    listener = _listener.get()
    if listener is not None:
        listener(step)


@contextmanager
def told_to(listener: Callable[[str], None]) -> Iterator[None]:
    """Within it, `listener` is called with the name of every step that begins."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
