"""What tests/mobile/ promises of itself: nothing half made is used, no failure goes unexplained."""

import io
import os
import subprocess
import sys
import tarfile
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from mobile import agreement, cache, gpu, native, npm, process, smoke
from mobile import archive as archives
from mobile.job import Failure, Job, results
from mobile.page import Page

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Of the cache, an empty one."""
    monkeypatch.setattr(cache, "FOLDER", tmp_path / "mobile")
    return cache.FOLDER


@pytest.fixture
def file(tmp_path):
    """y = x + x of shape (1, 5)."""
    path = tmp_path / "smoke.tflite"
    path.write_bytes(smoke.content())
    return path


def python(tmp_path, script, jobs, seconds=30.0):
    """Jobs for a worker of our own."""
    (tmp_path / "worker.py").write_text(textwrap.dedent(script))
    env = {**os.environ, "PYTHONPATH": str(process.WORKERS)}
    worker = str(tmp_path / "worker.py")
    return process.outcomes(jobs, worker, python=[sys.executable], env=env, seconds=seconds)


# ---- The cache --------------------------------------------------------------------------------


def test_made_once_for_each_recipe(folder):
    calls = []

    def make(partial, final):
        calls.append(final)
        (partial / "file").write_text("whole")

    first = cache.made("thing", {"version": 1}, make)
    assert cache.made("thing", {"version": 1}, make) == first == calls[0]
    second = cache.made("thing", {"version": 2}, make)
    assert second != first
    assert len(calls) == 2
    assert (second / "file").read_text() == "whole"


def test_a_failed_set_up_leaves_nothing_that_is_taken_for_whole(folder):
    def fail(partial, _):
        (partial / "half").touch()
        cache.command(sys.executable, "-c", "print('no archive'); raise SystemExit(3)")

    def make(partial, _):
        assert not list(partial.iterdir())
        (partial / "whole").touch()

    with pytest.raises(cache.SetUpFailed, match="no archive"):
        cache.made("thing", 1, fail)
    made = cache.made("thing", 1, make)
    assert [path.name for path in made.iterdir()] == ["whole"]


def test_a_killed_set_up_is_begun_anew(folder):
    script = """
        import sys, time
        from pathlib import Path
        from mobile import cache

        def make(partial, _):
            (partial / "half").touch()
            print("begun", flush=True)
            time.sleep(60)

        cache.FOLDER = Path(sys.argv[1])
        cache.made("thing", 1, make)
    """
    code = Path(folder.parent / "killed.py")
    code.write_text(textwrap.dedent(script))
    env = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    words = [sys.executable, code, folder]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"begun\n"
        child.kill()
    assert len(list(folder.glob("thing-*.part/half"))) == 1
    made = cache.made("thing", 1, lambda partial, _: (partial / "whole").touch())
    assert [path.name for path in made.iterdir()] == ["whole"]


def test_an_archive_stays_in_its_folder(tmp_path):
    def archive(name):
        with tarfile.open(tmp_path / "a.tar", "w") as file:
            member = tarfile.TarInfo(name)
            member.size, member.mode = 5, 0o755
            file.addfile(member, io.BytesIO(b"bytes"))
        return tarfile.open(tmp_path / "a.tar")

    with archive("./usr/bin/tool") as file:
        archives.extract(file, tmp_path / "in", "usr/lib/*")
        assert not (tmp_path / "in").exists()
    with archive("./usr/bin/tool") as file:
        archives.extract(file, tmp_path / "in", "usr/bin/*")
    assert (tmp_path / "in/usr/bin/tool").read_bytes() == b"bytes"
    assert os.access(tmp_path / "in/usr/bin/tool", os.X_OK)
    with archive("../out") as file, pytest.raises(cache.SetUpFailed, match=r"'\.\./out'"):
        archives.extract(file, tmp_path / "in")
    assert not (tmp_path / "out").exists()


def test_a_package_must_be_the_pinned_one():
    name, (_, integrity) = next(iter(npm.PACKAGES.items()))
    with pytest.raises(cache.SetUpFailed, match=r"@litertjs/core must be sha512-.* Received: sha"):
        npm.check(name, b"another", integrity)


# ---- A process for many jobs ------------------------------------------------------------------


def test_the_interpreters_of_this_machine(file):
    assert smoke.why_not(native) is None
    x = np.arange(10, dtype="float32").reshape(2, 5)
    jobs = [Job(file, {"x": x}, {"xnnpack": on}) for on in (True, False)]
    for got in native.run(jobs):
        np.testing.assert_array_equal(got["y"], 2 * x)


def test_a_bad_job_fails_alone(file, tmp_path):
    bad = tmp_path / "bad.tflite"
    bad.write_bytes(b"no model at all")
    x = np.ones((1, 5), "float32")
    jobs = [Job(file, {"x": x}), Job(bad, {"x": x}), Job(file, {"z": x}), Job(file, {"x": x})]
    first, second, third, last = native.outcomes(jobs)
    np.testing.assert_array_equal(first["y"], last["y"])
    assert isinstance(second, Failure) and "bad.tflite" in str(second)
    assert isinstance(third, Failure)
    with pytest.raises(Failure, match=r"bad\.tflite"):
        results([first, second])


def test_options_are_known_ones(file):
    with pytest.raises(ValueError, match="Received: threads=3"):
        native.outcomes([Job(file, {}, {"threads": 3})])
    with pytest.raises(ValueError, match="Received: accelerator='gpu'"):
        native.outcomes([Job(file, {}, {"accelerator": "gpu"})])


DIES = """
    import os, sys
    import exchange

    def load(path, options):
        print("said before", options["word"], file=sys.stderr, flush=True)
        if options["word"] == "die":
            os.abort()
        return 2, lambda inputs: {"y": inputs["x"] + os.getpid() * 0}

    exchange.serve(load)
"""


def test_where_a_process_dies_the_others_are_done(tmp_path):
    x = np.arange(4.0).reshape(4, 1)
    jobs = [Job(tmp_path / w, {"x": x}, {"word": w}) for w in ("one", "die", "three", "die")]
    first, second, third, fourth = python(tmp_path, DIES, jobs)
    np.testing.assert_array_equal(first["y"], x)
    np.testing.assert_array_equal(third["y"], x)
    for failure in second, fourth:
        assert isinstance(failure, Failure)
        assert "died of SIGABRT\nsaid before die" in str(failure)
        assert "said before one" not in str(failure)


def test_a_process_that_does_not_begin(tmp_path):
    with pytest.raises(Failure, match="ended with 1 before its first job") as caught:
        python(tmp_path, "import no_such_module", [Job(tmp_path, {})])
    assert "No module named 'no_such_module'" in str(caught.value)


def test_time_is_limited(tmp_path):
    script = """
        import time
        import exchange
        exchange.serve(lambda path, options: time.sleep(options["seconds"]) or (1, None))
    """
    jobs = [Job(tmp_path, {}, {"seconds": seconds}) for seconds in (0, 60, 0)]
    begin = time.monotonic()
    first, *others = python(tmp_path, script, jobs, seconds=8)
    assert time.monotonic() - begin < 30
    assert first == {}
    for failure in others:
        assert "took longer than 8 s" in str(failure)


def test_samples_fill_batches(tmp_path):
    x = np.zeros((3, 1))
    (failure,) = python(tmp_path, DIES, [Job(tmp_path, {"x": x}, {"word": "three"})])
    assert "a multiple of 2" in str(failure)


def test_the_reason_of_a_refusal():
    said = "INFO\nERROR: Following operations are not supported by GPU delegate:\nSLICE: why\n"
    failure = Failure(f"{said}18 operations will run on the GPU, and 7 on the CPU.")
    assert gpu.refusal(failure) == "SLICE: why"
    failure = Failure(f"{said}No operations will run on the GPU, and all 7 on the CPU.")
    assert gpu.refusal(failure) == "SLICE: why"
    assert gpu.refusal(Failure("died")) == "died"


# ---- The page ---------------------------------------------------------------------------------


def test_the_page_gives_jobs_and_takes_outcomes(file, tmp_path):
    x = np.arange(5, dtype="float32")[None]
    (tmp_path / "outside").write_text("secret")
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages/inside.js").write_text("1")
    with Page([Job(file, {"x": x}), Job(file, {"x": x})], tmp_path / "packages") as page:
        head, _, content = page.answer("/job").partition(b"\n")
        assert b'"number": 0' in head
        assert content == x.tobytes()
        assert page.answer("/model") == file.read_bytes()
        assert page.answer("/inside.js") == b"1"
        assert page.answer("/../outside") is None
        outputs = (
            b'{"number": 0, "outputs": [{"name": "y", "dtype": "float32", "shape": [1, 5]}]}\n'
        )
        page.take(outputs + (2 * x).tobytes())
        assert not page.done.is_set()
        page.take(b'{"number": 1, "error": "out of memory"}\n')
        assert page.done.is_set()
        assert page.answer("/job") == b"null\n"
    np.testing.assert_array_equal(page.outcomes[0]["y"], 2 * x)
    assert "out of memory" in str(page.outcomes[1])


# ---- How far ----------------------------------------------------------------------------------


def test_agreement():
    want = np.array([3.0, -4.0])
    assert agreement.relative_error(want, want + np.array([0, 0.004])) == pytest.approx(1e-3)
    assert agreement.relative_error(want, np.array([3.0, np.nan])) == np.inf
    assert agreement.sqnr(want, want * 1.01) == pytest.approx(40)
    assert agreement.sqnr(want, want) == np.inf
    assert agreement.sqnr(want, np.array([np.nan, 0])) == -np.inf
    with pytest.raises(ValueError, match="Shapes must agree"):
        agreement.sqnr(want, want[None])
