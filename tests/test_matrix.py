"""The support matrix: what fills a cell."""

import json
from types import SimpleNamespace

import matrix
import pytest
from rows import CATALOG


def row(name="Some", fused="normalize", mask="statistics", replicas="same", inputs=1):
    return SimpleNamespace(name=name, fused=fused, mask=mask, replicas=replicas, inputs=inputs)


def test_the_worst_of_its_tests_fills_a_cell():
    outcomes = {
        "Some": {
            "mask": {"a": "yes", "b": "yes"},
            "XLA": {"a": "yes", "b": "fails", "c": "skipped"},
            "sync": {"a": "yes", "c": "skipped"},
        }
    }
    cells = matrix.fill(outcomes, [row()])["Some"]
    assert (cells["mask"], cells["XLA"], cells["sync"]) == ("yes", "fails", "skipped")
    assert cells["SavedModel"] == "not run"
    assert tuple(cells) == matrix.COLUMNS


def test_what_the_table_of_layers_says():
    outcomes = {"Some": {"mask": {"a": "yes"}}}
    cells = matrix.fill(outcomes, [row(fused="", mask="passed on", replicas="own")])["Some"]
    assert (cells["fused CPU"], cells["fused GPU"]) == ("portable", "portable")
    assert (cells["mask"], cells["sync"]) == ("passed on", "own statistics")
    outcomes = {"Some": {"mask": {"a": "fails"}, "sync": {"a": "yes"}}}
    cells = matrix.fill(outcomes, [row(mask="passed on", replicas="own")])["Some"]
    assert (cells["mask"], cells["sync"]) == ("fails", "yes")
    assert cells["fused GPU"] == "not run"
    assert matrix.fill({}, [row(inputs=2)])["Some"]["Sequential"] == "2 inputs"


def test_a_partial_run_replaces_what_it_ran():
    known = {"Some": {"mask": {"a": "fails", "b": "yes"}}}
    new = {"Some": {"mask": {"a": "yes"}, "XLA": {"c": "yes"}}, "Other": {"mask": {"a": "yes"}}}
    assert matrix.merged(known, new) == {
        "Some": {"mask": {"a": "yes", "b": "yes"}, "XLA": {"c": "yes"}},
        "Other": {"mask": {"a": "yes"}},
    }


def report(outcome, when="call", **others):
    properties = [("supports", ["Some", "XLA"])]
    return SimpleNamespace(
        outcome=outcome, when=when, nodeid="a", user_properties=properties, **others
    )


@pytest.mark.parametrize(
    "reports, cell",
    [
        ([report("passed", "setup"), report("passed"), report("passed", "teardown")], "yes"),
        ([report("passed", "setup"), report("failed"), report("passed", "teardown")], "fails"),
        ([report("failed", "setup")], "fails"),
        ([report("passed"), report("failed", "teardown")], "fails"),
        ([report("skipped", "setup")], "skipped"),
        ([report("skipped", wasxfail="the reason")], "fails"),
    ],
)
def test_outcomes(reports, cell):
    plugin = matrix.Plugin()
    for one in reports:
        plugin.pytest_runtest_logreport(one)
    assert plugin.outcomes == {"Some": {"XLA": {"a": cell}}}


def test_what_is_packaged_is_what_the_readme_says():
    packaged = json.loads(matrix.PACKAGED.read_text())
    assert list(packaged["layers"]) == [row.name for row in CATALOG]
    assert matrix.render(packaged["layers"]) in matrix.README.read_text()
