"""`python -m benchmarks.mobile.render`: writes the kept result into docs/mobile.md.

Each table has markers of its own, and nothing between them is typed.
"""

import argparse
import re
import sys
from pathlib import Path

from benchmarks.mobile import results
from benchmarks.mobile.results import Result
from benchmarks.mobile.tables import BLOCKS

PAGE = Path(__file__).parents[2] / "docs" / "mobile.md"


def begin(name: str) -> str:
    return f"<!-- mobile:{name}:begin -->"


def end(name: str) -> str:
    return f"<!-- mobile:{name}:end -->"


def render(text: str, result: Result) -> str:
    """`text` with what stands between each pair of markers replaced.

    Raises: ValueError, if it does not hold every pair once.
    """
    for name, block in BLOCKS.items():
        first, last = begin(name), end(name)
        if text.count(first) != 1 or text.count(last) != 1 or text.index(first) > text.index(last):
            raise ValueError(f"The text must hold `{first}` and then `{last}`, once each.")
        before, rest = text.split(first)
        text = f"{before}{first}\n{block(result)}\n{last}{rest.split(last)[1]}"
    return text


def unknown(text: str) -> list[str]:
    """Markers that no table is rendered between."""
    return sorted(set(re.findall(r"<!-- mobile:(\S+):begin -->", text)) - set(BLOCKS))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mobile.render", description=__doc__)
    parser.add_argument("--json", type=Path, help="a kept result (default: the last one)")
    parser.add_argument("page", type=Path, nargs="?", default=PAGE)
    options = parser.parse_args(arguments)
    result = results.read(options.json or results.latest())
    options.page.write_text(render(options.page.read_text(), result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
