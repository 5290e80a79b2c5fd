"""The README's support matrix, from the tests that ran.

A test marked `@pytest.mark.supports("feature")`, with a catalog row among its parameters, fills a
cell: its layer's row, its feature's column. A test of one layer names it: `supports("sync",
layer="BatchNormalization")`. The plugin below adds what happened to `build/support.json`, which
`make test` begins anew; `python tests/matrix.py` renders that into README.md and into
keras_norms/support.json, for `keras-norms list --matrix`. `--check` fails when they do not say the
same. A cell that no test filled reads "not run".
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"
PACKAGED = ROOT / "keras_norms" / "support.json"
RESULTS = ROOT / "build" / "support.json"
BEGIN, END = "<!-- matrix:begin -->", "<!-- matrix:end -->"
WORST_FIRST = ("fails", "skipped", "yes")
COLUMNS = (
    "Sequential",
    "functional",
    "mask",
    "mixed precision",
    "XLA",
    "fused CPU",
    "fused GPU",
    "sync",
    ".keras",
    ".h5",
    "SavedModel",
    "TFLite float",
    "TFLite float16",
    "TFLite dynamic",
    "TFLite int8",
    "TFLite int16x8",
)

# What happened to each test: layer, feature, test, "yes", "skipped" or "fails".
Outcomes = dict[str, dict[str, dict[str, str]]]


class Plugin:
    """Collects outcomes, also those that xdist's workers report."""

    def __init__(self):
        self.outcomes: Outcomes = {}

    def pytest_collection_modifyitems(self, items):
        for item in items:
            row = getattr(item, "callspec", None) and item.callspec.params.get("row")
            for marker in item.iter_markers("supports"):
                (feature,) = marker.args
                if feature not in COLUMNS:
                    raise ValueError(f"{item.nodeid}: no column {feature!r} in tests/matrix.py.")
                layer = marker.kwargs.get("layer") or row.name
                item.user_properties.append(("supports", [layer, feature]))

    def pytest_runtest_logreport(self, report):
        outcome = {"passed": "yes", "failed": "fails", "skipped": "skipped"}[report.outcome]
        if hasattr(report, "wasxfail"):  # expected to fail, and so it did
            outcome = "fails"
        if report.when != "call" and outcome == "yes":
            return
        for name, value in report.user_properties:
            if name == "supports":
                layer, feature = value
                cell = self.outcomes.setdefault(layer, {}).setdefault(feature, {})
                worst = min(cell.get(report.nodeid, "yes"), outcome, key=WORST_FIRST.index)
                cell[report.nodeid] = worst

    def pytest_sessionfinish(self, session):
        if self.outcomes and not hasattr(session.config, "workerinput"):
            RESULTS.parent.mkdir(exist_ok=True)
            known = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            RESULTS.write_text(json.dumps(merged(known, self.outcomes), indent=1, sort_keys=True))


def merged(known: Outcomes, new: Outcomes) -> Outcomes:
    """What is known, with what ran anew in the place of what it was."""
    for layer, features in new.items():
        for feature, tests in features.items():
            known.setdefault(layer, {}).setdefault(feature, {}).update(tests)
    return known


def fill(outcomes: Outcomes, rows) -> dict[str, dict[str, str]]:
    """The cells of each row: the worst of what its tests gave, or what cannot be otherwise."""
    table = {}
    for row in rows:
        table[row.name] = cells = {}
        for column in COLUMNS:
            tests = outcomes.get(row.name, {}).get(column, {})
            cell = min(tests.values(), default="not run", key=WORST_FIRST.index)
            if column.startswith("fused ") and not row.fused:
                cell = "portable"
            elif column == "Sequential" and row.inputs > 1:
                cell = f"{row.inputs} inputs"
            elif column == "mask" and row.mask == "passed on" and cell == "yes":
                cell = "passed on"
            elif column == "sync" and row.replicas == "own" and cell == "not run":
                cell = "own statistics"
            cells[column] = cell
    return table


def render(table: dict[str, dict[str, str]]) -> str:
    lines = [f"| layer | {' | '.join(COLUMNS)} |", "|---" * (1 + len(COLUMNS)) + "|"]
    for layer, cells in table.items():
        lines.append(f"| `{layer}` | {' | '.join(cells[column] for column in COLUMNS)} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="change nothing; fail if outdated")
    check = parser.parse_args().check
    if not RESULTS.exists():
        print(f"{RESULTS} is missing: run the tests first (make test).", file=sys.stderr)
        return 1
    from keras_norms.catalog import CATALOG

    table = fill(json.loads(RESULTS.read_text()), CATALOG)
    text = README.read_text()
    before, rest = text.split(BEGIN)
    files = {
        README: f"{before}{BEGIN}\n{render(table)}\n{END}{rest.split(END)[1]}",
        PACKAGED: json.dumps({"columns": COLUMNS, "layers": table}, indent=1) + "\n",
    }
    outdated = [
        path.name for path, new in files.items() if not path.exists() or path.read_text() != new
    ]
    if check and outdated:
        print(f"The support matrix is outdated in {', '.join(outdated)}: run make matrix. It is")
        print(render(table))
        return 1
    for path, new in files.items():
        path.write_text(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
