"""Sets the runtimes up, tries each on a small file and says what works, and why not."""

import argparse
import os
import sys
import time

from . import smoke
from .runtimes import RUNTIMES, why_not


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mobile", description=__doc__)
    parser.add_argument("--only", default=",".join(RUNTIMES), help="names, separated by commas")
    names = parser.parse_args().only.split(",")
    if unknown := set(names) - set(RUNTIMES):
        parser.error(f"--only takes {', '.join(RUNTIMES)}. Received: {', '.join(sorted(unknown))}")
    missing = 0
    for name in names:
        begin = time.monotonic()
        reason = why_not(name) or smoke.why_not(RUNTIMES[name])
        missing += reason is not None
        print(f"{name}: {reason or 'works'} ({time.monotonic() - begin:.0f} s)", flush=True)
    required = os.environ.get("KERAS_NORMS_REQUIRE_MOBILE", "0") not in ("", "0")
    return 1 if missing and required else 0


if __name__ == "__main__":
    sys.exit(main())
