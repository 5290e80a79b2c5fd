"""The table of the runtimes."""

from . import aarch64, browser, gpu, native
from .cache import SetUpFailed

RUNTIMES = {"native": native, "aarch64": aarch64, "gpu": gpu, "browser": browser}


def why_not(name: str) -> str | None:
    """Sets the runtime up and returns None, or why it cannot be had here."""
    runtime = RUNTIMES[name]
    reason = runtime.available()
    if reason is None:
        try:
            runtime.set_up()
        except SetUpFailed as error:
            reason = f"its set-up failed: {error}"
    return reason
