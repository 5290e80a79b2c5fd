"""The README's support matrix, from the tests that ran.

A contract test marked `@pytest.mark.supports("feature")`, with a catalog row among its parameters,
fills a cell: its layer's row, its feature's column. The plugin below writes what happened to
`build/support.json`; `python tests/matrix.py` renders that into README.md, and `--check` fails
when README.md does not say the same. A cell that no test filled reads "not run".
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "build" / "support.json"
BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"
WORST_FIRST = ("fails", "skipped", "yes")


class Plugin:
    """Collects outcomes, also those that xdist's workers report."""

    def __init__(self):
        self.cells = {}

    def pytest_collection_modifyitems(self, items):
        for item in items:
            marker = item.get_closest_marker("supports")
            row = getattr(item, "callspec", None) and item.callspec.params.get("row")
            if marker and row:
                item.user_properties.append(("supports", [row.name, *marker.args]))

    def pytest_runtest_logreport(self, report):
        outcome = {"passed": "yes", "failed": "fails", "skipped": "skipped"}[report.outcome]
        if report.when != "call" and outcome == "yes":
            return
        for name, value in report.user_properties:
            if name == "supports":
                layer, feature = value
                cell = self.cells.setdefault(layer, {})
                cell[feature] = min(cell.get(feature, "yes"), outcome, key=WORST_FIRST.index)

    def pytest_sessionfinish(self, session):
        if self.cells and not hasattr(session.config, "workerinput"):
            RESULTS.parent.mkdir(exist_ok=True)
            RESULTS.write_text(json.dumps(self.cells, indent=1, sort_keys=True))


def render(cells: dict[str, dict[str, str]], layers: list[str]) -> str:
    features = sorted({feature for row in cells.values() for feature in row})
    lines = [f"| layer | {' | '.join(features)} |", "|---" * (1 + len(features)) + "|"]
    for layer in layers:
        row = cells.get(layer, {})
        lines.append(f"| `{layer}` | {' | '.join(row.get(f, 'not run') for f in features)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if outdated")
    check = parser.parse_args().check
    if not RESULTS.exists():
        print(f"{RESULTS} is missing: run the tests first (make test).", file=sys.stderr)
        return 1
    from keras_norms.catalog import CATALOG

    table = render(json.loads(RESULTS.read_text()), [row.name for row in CATALOG])
    text = README.read_text()
    before, rest = text.split(BEGIN)
    new = f"{before}{BEGIN}\n{table}\n{END}{rest.split(END)[1]}"
    if check and new != text:
        print(f"README.md's support matrix is outdated: run make matrix. It should be\n{table}")
        return 1
    README.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
