"""`keras-norms export`, `inspect`, `compare` and `bench`.

In this process where that shows the same; in one of its own where TensorFlow's logs, a terminal or
the time to start matter.
"""

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest

import keras_norms as kn
from keras_norms import cli, cli_words

COMMAND = Path(cli.__file__).resolve().parent.parent / "keras_norms_command.py"
COMMANDS = ("export", "inspect", "compare", "bench")


def user_environment(**changes):
    """As users have it: nothing silences TensorFlow."""
    return {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"} | changes


def command(*arguments, **environment):
    return subprocess.run(
        [sys.executable, COMMAND, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=user_environment(**environment),
        timeout=120,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model with fixed sizes, one with open sizes, samples, and two files of the first."""
    folder = tmp_path_factory.mktemp("commands")
    keras.utils.set_random_seed(3)
    for name, sizes in (("model", (9, 7, 3)), ("open", (None, None, 3))):
        model = keras.Sequential(
            [
                keras.Input(sizes, name="image"),
                keras.layers.Conv2D(6, 3),
                kn.GroupNormalization(2),
                keras.layers.GlobalAveragePooling2D(),
            ]
        )
        model.save(folder / f"{name}.keras")
    samples = np.random.default_rng(5).normal(size=(16, 9, 7, 3)).astype("float32")
    np.save(folder / "samples.npy", samples)
    np.savez(folder / "samples.npz", image=samples)
    np.savez(folder / "alone.npz", samples)
    np.savez(folder / "other.npz", picture=samples)
    damaged = bytearray((folder / "samples.npz").read_bytes())
    damaged[len(damaged) // 2] ^= 1  # which the archive's checksum shows
    (folder / "cut.npz").write_bytes(damaged)
    for name, batch in (("one", 1), ("two", 2)):
        kn.tflite.convert(
            folder / "model.keras", folder / f"{name}.tflite", batch_size=batch, verify=False
        )
    return folder


@pytest.fixture
def main(folder, capsys, monkeypatch):
    """Runs a command here: its exit status, stdout and stderr."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        before = {path: path.is_dir() or path.read_bytes() for path in folder.iterdir()}
        try:
            status = cli.main(list(map(str, arguments)))
        except SystemExit as error:
            status = error.code
        out, err = capsys.readouterr()
        if status:
            after = {path: path.is_dir() or path.read_bytes() for path in folder.iterdir()}
            assert after == before
            assert out == ""
        return status, out, err

    return run


# ---- As users run them ------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_help_imports_nothing(name, tmp_path):
    for module in ("keras", "tensorflow", "numpy"):
        (tmp_path / f"{module}.py").write_text("raise ImportError('imported too early')\n")
    start = time.perf_counter()
    done = command(name, "--help", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert time.perf_counter() - start < 1  # importing TensorFlow takes more than two
    assert f"usage: keras-norms {name}" in done.stdout
    assert "--json" in done.stdout


def test_a_user_sees_the_report_alone(folder, tmp_path):
    path = tmp_path / "m.tflite"
    done = command("export", folder / "model.keras", path, "--json")
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert (report["path"], report["size"]) == (str(path), path.stat().st_size)
    assert max(a["max_error"] / a["max_output"] for a in report["agreements"]) <= 1e-5
    assert [norm["layer"] for norm in report["norms"]] == ["GroupNormalization"]


def test_a_user_sees_a_failure_in_one_line(tmp_path):
    done = command("export", tmp_path / "none.keras", tmp_path / "m.tflite")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        f"keras-norms export: There is no such file. Received: {str(tmp_path / 'none.keras')!r}\n"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_the_log_is_shown_if_it_is_asked_for(folder):
    done = command("inspect", folder / "one.tflite", TF_CPP_MIN_LOG_LEVEL="0")
    assert done.returncode == 0
    assert "absl::InitializeLog" in done.stderr


def test_progress_on_a_terminal(folder, tmp_path):
    """stderr is a terminal, stdout a pipe."""
    master, slave = pty.openpty()
    arguments = [sys.executable, COMMAND, "export", folder / "model.keras", tmp_path / "m.tflite"]
    with subprocess.Popen(
        [*map(str, arguments), "--json"],
        stdout=subprocess.PIPE,
        stderr=slave,
        env=user_environment(TERM="xterm", COLUMNS="150"),
    ) as process:
        os.close(slave)
        shown = b""
        while True:
            try:
                part = os.read(master, 4096)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            shown += part
        out = process.stdout.read()
    os.close(master)
    assert process.returncode == 0
    assert json.loads(out)["path"] == str(tmp_path / "m.tflite")
    shown = shown.decode()
    for step in ("loading TensorFlow", "converting the model"):  # others may be too short to see
        assert f"keras-norms export: {step}" in shown
    assert "absl" not in shown
    assert shown.rstrip().endswith("\x1b[?25h\r\x1b[1A\x1b[2K")  # the cursor is back, the line gone


def test_without_tensorflow(folder, tmp_path):
    (tmp_path / "tensorflow.py").write_text("raise ModuleNotFoundError('No TensorFlow here')\n")
    done = command("inspect", folder / "one.tflite", PYTHONPATH=str(tmp_path))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "keras-norms inspect: No TensorFlow here\n"


# ---- export -----------------------------------------------------------------------------------


def test_export(main, folder, tmp_path):
    status, out, err = main("export", "model.keras", tmp_path / "m.tflite")
    assert (status, err) == (0, "")
    assert re.search(rf"^file +{re.escape(str(tmp_path))}/m.tflite$", out, re.MULTILINE)
    assert "compared with Keras" in out
    assert [path.name for path in tmp_path.iterdir()] == ["m.tflite"]


@pytest.mark.parametrize("samples", ["samples.npy", "samples.npz", "alone.npz"])
def test_export_with_samples(samples, main, folder, tmp_path):
    """Of each kind of file, by name and alone; the calibration is seen in the ranges."""
    path = tmp_path / "m.tflite"
    options = ("--quantize", "int8", "--calibration", samples, "--norms", "float")
    status, out, _ = main("export", "model.keras", path, *options, "--json")
    report = json.loads(out)
    assert (status, report["quantize"], report["samples"]) == (0, "int8", 8)
    data = np.load("samples.npy")
    want = keras.models.load_model("model.keras")(data).numpy()
    error = kn.tflite.run(path, data) - want
    assert 10 * np.log10(np.sum(want**2) / np.sum(error**2)) > 25


def test_export_of_open_sizes(main, tmp_path):
    path = tmp_path / "m.tflite"
    options = ("--input-shape", "image=?,?,3", "--batch-size", "0")
    status, out, _ = main("export", "open.keras", path, *options)
    assert status == 0
    assert "Sizes are left open: the file computes shapes while it runs" in out
    (image,) = kn.tflite.inspect(path).inputs
    assert image.shape == (None, None, None, 3)
    status, out, _ = main("export", "open.keras", path, "--input-shape", "9,7,3", "--no-verify")
    (image,) = kn.tflite.inspect(path).inputs
    assert (status, image.shape) == (0, (1, 9, 7, 3))
    assert re.search(r"^compared with Keras +no$", out, re.MULTILINE)


def test_export_with_every_other_option(main, tmp_path):
    path = tmp_path / "m.tflite"
    status, out, _ = main(
        *("export", "model.keras", path, "--target", "gpu", "--quantize", "float16", "--json"),
        *("--data", "samples.npy", "--batch-size", 2, "--no-metadata", "--tolerance", "1e-4"),
    )
    report, file = json.loads(out), kn.tflite.inspect(path)
    assert (status, report["target"], report["quantize"]) == (0, "gpu", "float16")
    assert (report["samples"], file.inputs[0].shape[0]) == (16, 2)
    assert (file.conversion, file.test_vectors) == (None, False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("none.keras", "m.tflite"), "There is no such file. Received: 'none.keras'"),
        (
            ("model.keras", "m.lite"),
            "`output` must name a file ending in '.tflite'. Received: 'm.l",
        ),
        (
            ("model.keras", "none/m.tflite"),
            "The folder of `output` must exist. Received: output='n",
        ),
        (("samples.npy", "m.tflite"), "A saved model must end in .keras or .h5, or be a SavedMode"),
        (("model.keras", "m.tflite", "--data", "none.npy"), "'none.npy' holds no arrays: [Errno"),
        (("model.keras", "m.tflite", "--data", "model.keras"), "'model.keras' holds no arrays: "),
        (("model.keras", "m.tflite", "--data", "cut.npz"), "'cut.npz' holds no arrays: "),
        (("model.keras", "m.tflite", "--data", "one.tflite"), "'one.tflite' holds no arrays: "),
        (
            ("model.keras", "m.tflite", "--data", "other.npz"),
            "`--data` must be an array of samples",
        ),
        (("open.keras", "m.tflite"), "Every size must be known and above 0. Received: (None, None"),
        (
            ("model.keras", "m.tflite", "--input-shape", "8,7,3"),
            "`--input-shape` must agree with the model, whose input 'image' has shape (9, 7, 3)",
        ),
        (
            ("model.keras", "m.tflite", "--input-shape", "picture=9,7,3"),
            "`--input-shape` must be a shape (without the batch) for each input (image)",
        ),
        (
            ("model.keras", "m.tflite", "--tolerance", "1e-12"),
            "LiteRT and Keras disagree: the output",
        ),
        (
            (
                *("model.keras", "m.tflite", "--batch-size", "0"),
                *("--quantize", "int8", "--calibration", "samples.npy"),
            ),
            "--quantize int8 needs fixed sizes: the ranges of numbers are measured for one size. "
            "Give `--batch-size` and every size in `--input-shape`. Received: {'image': (None, 9",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_export_fails(arguments, message, main):
    status, _, err = main("export", *arguments)
    assert status == 1
    assert err.startswith(f"keras-norms export: {message}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("open.keras",),
            "Pass `--input-shape` (without the batch), as in `--input-shape 224,224,3`; a size "
            "given there as ? stays open, which costs",
        ),
        (
            ("model.keras", "--batch-size", 3, "--data", "samples.npy"),
            "`--data` must hold the same number of samples for every input, a multiple of "
            "--batch-size 3. Received: {'image': 16}",
        ),
        (("model.keras", "--data", "flat.npy"), "`--data` must hold samples of shape (9, 7, 3)"),
        (("model.keras", "--tolerance", "1e-12"), "Allowed: --tolerance 1e-12 times that. "),
        (
            ("model.keras", "--tolerance", "1e-12"),
            "Rounding in a deep network may need a larger `--tolerance`.)",
        ),
        (
            ("model.keras", "--data", "nan.npy"),
            "(Other samples can be given as `--data`.)",
        ),
        (
            ("model.keras", "--quantize", "int8", "--calibration", "nan.npy"),
            "`--calibration` must be finite. Received: 1 of 189 values of 'image' that are NaN",
        ),
        (
            ("model.keras", "--quantize", "int16x8", "--calibration", "other.npz"),
            "`--calibration` must be arrays of samples, one for each input (image)",
        ),
        (
            ("model.keras", "--quantize", "int8", "--calibration", "flat.npy"),
            "`--calibration` must hold samples of shape (9, 7, 3) for the input 'image'",
        ),
        (
            ("saved", "--input-shape", "9,?,3"),
            "`--input-shape` cannot change a SavedModel, which is converted as it is. Received: "
            "--input-shape 9,?,3",
        ),
        (
            ("saved", "--input-shape", "image=9,7,3", "--input-shape", "b=2"),
            "Received: --input-shape image=9,7,3 --input-shape b=2",
        ),
        (
            ("for_four",),
            "`--batch-size` must agree with the SavedModel, which was written for one. Received: "
            "--batch-size 1 for the input 'image'",
        ),
        (("for_four", "--batch-size", 0), "Received: --batch-size 0 for the input 'image'"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_errors_name_the_options(arguments, words, main, folder):
    samples = np.load("samples.npy")
    np.save("flat.npy", samples.reshape(16, -1))
    samples[0, 0, 0, 0] = np.nan
    np.save("nan.npy", samples[:1])
    model = keras.models.load_model("model.keras")
    for name, batch in (("saved", None), ("for_four", 4)):
        if arguments[0] == name and not Path(name).exists():
            spec = keras.InputSpec(shape=(batch, 9, 7, 3), dtype="float32", name="image")
            with kn.portable():
                model.export(name, verbose=False, input_signature=[spec])
    status, _, err = main("export", arguments[0], "m.tflite", *arguments[1:])
    assert status == 1
    assert words in err
    assert err.count("\n") == 1
    for name in ("batch_size", "input_shape", "representative", "`data", "tolerance=", "quantize="):
        assert name not in err


def test_without_litert_an_option_is_named(main, monkeypatch):
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    status, _, err = main("export", "model.keras", "m.tflite")
    assert status == 1
    assert err.endswith("(`--no-verify` writes a file without running it.)\n")


def test_names_of_users_are_not_options(main, folder):
    """Not even if they look so."""
    status, _, err = main("export", "data=3/batch_size=None.keras", "m.tflite")
    assert status == 1
    assert err.endswith(" Received: 'data=3/batch_size=None.keras'\n")


@pytest.mark.parametrize(
    ("words", "want"),
    [
        ("A layer's `data`, data=x and path=/tmp/x", "A layer's `--data`, data=x and path=/tmp/x"),
        ("input_shapes={'a': 3} tolerance=+", "--input-shape a=3 tolerance=+"),
        (
            "the file's data='a' or files' `tolerance`",
            "the file's --data a or files' `--tolerance`",
        ),
        (
            "load_model(path, safe_mode=False), metadata",
            "load_model(path, safe_mode=False), metadata",
        ),
        ("input_shapes=(((( data=", "input_shapes=(((( data="),
        (
            "pass verify=False. Received: '/verify=False'",
            "pass --no-verify. Received: '/verify=False'",
        ),
    ],
)
def test_words_of_others_do_no_harm(words, want):
    """A layer can say anything."""
    assert cli_words.as_typed(words) == want


def test_an_object_array_is_not_unpickled(main, folder, tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    np.save(tmp_path / "evil.npy", np.array([Evil()]), allow_pickle=True)
    status, _, err = main("compare", "one.tflite", "one.tflite", "--data", tmp_path / "evil.npy")
    assert status == 1
    assert "holds no arrays: Object arrays cannot be loaded when allow_pickle=False" in err
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("export", "the following arguments are required: model, output"),
        ("export a.keras", "the following arguments are required: output"),
        ("export a.keras b.tflite --target tpu", "argument --target: invalid choice: 'tpu'"),
        ("export a.keras b.tflite --quantize int4", "argument --quantize: invalid choice: 'int4'"),
        ("export a.keras b.tflite --quantize int8", "--quantize int8 needs --calibration FILE"),
        ("export a.keras b.tflite --calibration c", "--calibration is for --quantize int8 and int"),
        ("export a.keras b.tflite --no-verify --data c", "--data is what the file is compared on"),
        ("export a.keras b.tflite --batch-size -1", "argument --batch-size: must be an integer of"),
        ("export a.keras b.tflite --tolerance 0", "argument --tolerance: must be a number above 0"),
        ("export a.keras b.tflite --tolerance nan", "argument --tolerance: must be a number above"),
        ("export a.keras b.tflite --tolerance inf", "argument --tolerance: must be a number above"),
        (
            "export a.keras b.tflite --input-shape 3,x",
            "argument --input-shape: must be sizes, as 2",
        ),
        (
            "export a.keras b.tflite --input-shape 0,3",
            "argument --input-shape: must be sizes, as 2",
        ),
        (
            "export a.keras b.tflite --input-shape a=",
            "argument --input-shape: must be sizes, as 22",
        ),
        (
            "export a.keras b.tflite --input-shape 3 --input-shape 4",
            "--input-shape given several times needs a name in each",
        ),
        ("inspect", "the following arguments are required: file"),
        ("compare a.tflite", "the following arguments are required: b"),
        ("compare a.tflite b.tflite --timeout 0", "argument --timeout: must be a number above 0"),
        ("bench", "the following arguments are required: file"),
        ("bench a.tflite --runs 0", "argument --runs: must be an integer above 0"),
        ("bench a.tflite --threads 1.5", "argument --threads: must be an integer above 0"),
    ],
)
def test_usage(arguments, message, main):
    status, _, err = main(*arguments.split())
    assert status == 2
    assert "usage: keras-norms" in err
    assert f"error: {message}" in err


# ---- inspect, compare, bench ------------------------------------------------------------------


def test_inspect(main, folder):
    status, out, err = main("inspect", "one.tflite")
    assert (status, err) == (0, "")
    rows = dict(re.split("  +", line.strip(), maxsplit=1) for line in out.splitlines())
    assert rows["input image"] == "float32 (1, 9, 7, 3)"
    assert rows["output output_0"] == "float32 (1, 6)"
    assert rows["size"] == f"{(folder / 'one.tflite').stat().st_size:,} bytes"
    assert (rows["not built in"], rows["test vectors"]) == ("none", "yes")
    found = json.loads(main("inspect", "one.tflite", "--json")[1])
    assert rows["operations"] == str(sum(found["ops"].values()))
    assert found["inputs"] == [{"name": "image", "shape": [1, 9, 7, 3], "dtype": "float32"}]
    assert found["conversion"]["norms"] == {"group_normalization": "scaled"} or (
        list(found["conversion"]["norms"].values()) == ["scaled"]
    )


def test_names_do_not_steer_the_terminal(main, folder):
    content = (folder / "one.tflite").read_bytes()
    (folder / "steering.tflite").write_bytes(content.replace(b"image", b"\x1b[2Jx"))
    status, out, _ = main("inspect", "steering.tflite")
    assert status == 0
    assert r"input \x1b[2Jx" in out
    assert "\x1b" not in out


def test_compare(main):
    status, out, err = main("compare", "one.tflite", "one.tflite", "--data", "samples.npz")
    assert (status, err) == (0, "")
    assert re.search(r"^samples +16$", out, re.MULTILINE)
    assert re.search(r"^output output_0 +SQNR 150.0 dB .* largest difference 0$", out, re.MULTILINE)


def test_compare_finds_a_difference(main, folder, tmp_path):
    """A file whose weights are halved is off by half of the output, 6.02 dB."""
    model = keras.models.load_model("model.keras")
    norm = model.layers[1]
    norm.set_weights([value / 2 for value in norm.get_weights()])
    kn.tflite.convert(model, tmp_path / "half.tflite")
    arguments = ("compare", "one.tflite", tmp_path / "half.tflite", "--data", "samples.npy")
    status, out, _ = main(*arguments, "--json")
    found = json.loads(out)
    assert (status, found["samples"]) == (0, 16)
    assert found["outputs"]["output_0"]["sqnr"] == pytest.approx(20 * np.log10(2), abs=1e-3)
    want = np.abs(kn.tflite.run(folder / "one.tflite", np.load("samples.npy"))).max() / 2
    assert found["outputs"]["output_0"]["max_error"] == pytest.approx(want, rel=1e-5)


def test_json_of_what_is_infinitely_far(main, tmp_path):
    """JSON has no infinity."""
    model = keras.models.load_model("model.keras")
    model.layers[1].beta.assign(np.full(6, np.nan))
    kn.tflite.convert(model, tmp_path / "nan.tflite", verify=False)
    status, out, _ = main("compare", "one.tflite", tmp_path / "nan.tflite", "--json")
    assert status == 0
    found = json.loads(out, parse_constant=pytest.fail)
    assert found["outputs"]["output_0"]["max_error"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "none.tflite"), "The file cannot be read: [Errno 2] No such file"),
        (("inspect", "."), "The file cannot be read: [Errno 21] Is a directory"),
        (("inspect", "model.keras"), "A .tflite file must begin with its format's mark, TFL3."),
        (("compare", "one.tflite", "model.keras"), "A .tflite file must begin with its format's"),
        (("compare", "one.tflite", "two.tflite"), "The files' outputs must agree. Received: "),
        (
            ("compare", "one.tflite", "one.tflite", "--timeout", "0.01"),
            "LiteRT did not come to an end with the file in 0.01 s.",
        ),
        (
            ("compare", "two.tflite", "two.tflite", "--data", "odd.npy"),
            "`--data` must hold the same number of samples for every input, a multiple of 2.",
        ),
        (("bench", "one.tflite", "none.tflite"), "The file cannot be read: [Errno 2] No such file"),
        (("bench", "model.keras"), "A .tflite file must begin with its format's mark, TFL3."),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_others_fail(arguments, message, main, folder):
    np.save(folder / "odd.npy", np.load("samples.npy")[:3])
    status, _, err = main(*arguments)
    assert status == 1
    assert err.startswith(f"keras-norms {arguments[0]}: {message}")
    assert err.count("\n") == 1


def test_bench(main):
    status, out, err = main("bench", "one.tflite", "two.tflite", "--runs", 3)
    assert (status, err) == (0, "")
    head, *lines = out.splitlines()
    assert head.split()[:2] == ["file", "median"]
    assert [line.split()[0] for line in lines] == ["one.tflite", "two.tflite"]
    assert lines[0].split()[-1] == "1.00"
    rows = json.loads(main("bench", "one.tflite", "--runs", 3, "--threads", 2, "--json")[1])
    assert rows[0]["path"] == "one.tflite"
    assert 0 < rows[0]["least"] <= rows[0]["median"]
    assert rows[0]["ratio"] == 1
