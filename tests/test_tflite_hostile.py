"""Damaged files: every call ends in a result or in a ValueError, soon and within bounded memory.

Each run is a process of its own with a limit on its memory, so that a crash or an endless loop ends
that one; what it was reading stands in its folder.
"""

import flatbuffers
import keras
import numpy as np
import pytest
from support import run_python

import keras_norms as kn
from keras_norms.tflite import ConversionError
from keras_norms.tflite.graph import schema

COMMON = """
    import collections, io, json, pathlib, random, resource, signal, struct, sys, time, zipfile
    import keras, numpy as np
    import keras_norms as kn
    from keras_norms.tflite import ConversionError, inspection

    folder, draw, seconds = pathlib.Path(sys.argv[1]), random.Random(int(sys.argv[2])), 30
    HUGE = (0xFFFFFFFF, 0x7FFFFFFF, 1 << 30, 1 << 24, 1 << 16, 0)

    def damaged(content):
        "Bytes changed, the end cut off, a part put elsewhere, or a length made huge."
        b, how = bytearray(content), draw.choice(("flip", "flip", "cut", "splice", "huge", "huge"))
        if how == "flip":
            for _ in range(draw.choice((1, 1, 3, 20))):
                b[draw.randrange(len(b))] = draw.randrange(256)
        elif how == "cut":
            b = b[: draw.randrange(len(b))]
        elif how == "splice":
            i, j = draw.randrange(len(b)), draw.randrange(len(b))
            b[i : i + draw.randrange(200)] = b[j : j + draw.randrange(200)]
        else:
            value = draw.choice((*HUGE, len(b), len(b) // 4))
            struct.pack_into("<I", b, 4 * draw.randrange(len(b) // 4), value)
        return how, bytes(b)

    def ends(call):
        "Whether it gives a result; a ValueError in one line is the only other end."
        signal.alarm(seconds)  # which ends the process
        try:
            call()
            return "result"
        except ValueError as error:
            assert str(error) and "\\n" not in str(error), error
            return "error"
        finally:
            signal.alarm(0)

    def limited(gigabytes):
        resource.setrlimit(resource.RLIMIT_AS, (int(gigabytes * 2**30),) * 2)

    def memory():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
"""

INSPECT = (
    COMMON
    + """
    sound = (folder / "m.tflite").read_bytes()
    path = folder / "damaged.tflite"
    before, seen = memory(), collections.Counter()
    limited(24)
    for _ in range(int(sys.argv[3])):
        how, content = damaged(sound)
        path.write_bytes(content)
        def call():
            found = kn.tflite.inspect(path)
            assert all(line.isprintable() for line in str(found).split("\\n"))
            json.loads(found.to_json())
        seen[how, ends(call)] += 1
    assert memory() - before < 2**29, (memory(), before)
    assert {how for how, _ in seen} == {"flip", "cut", "splice", "huge"}, seen
    assert {end for _, end in seen} == {"result", "error"}, seen
    """
)

COMPARE = (
    COMMON
    + """
    sound = (folder / "m.tflite").read_bytes()
    path = folder / "damaged.tflite"
    seen, count = collections.Counter(), 0
    limited(24)
    seconds = 60
    while count < int(sys.argv[3]):
        how, content = damaged(sound)
        path.write_bytes(content)
        try:
            kn.tflite.inspect(path)
        except ConversionError:
            continue  # as `compare` says too, without running anything
        count += 1
        # The damaged one second and first, and alone without samples.
        call = (lambda: kn.tflite.compare(folder / "m.tflite", path, timeout=20),
                lambda: kn.tflite.compare(path, path, timeout=20))[count % 2]
        seen[how, ends(call)] += 1
    assert sum(seen.values()) == int(sys.argv[3])
    """
)

KERAS = (
    COMMON
    + """
    VALUES = [None, -1, 0, 1, 2**31, 2**63, 1e308, "", "x" * 1000, [], {}, True, [None], "os", [[]]]

    def changed(text):
        "JSON with a value that is something else, or missing."
        whole, places = json.loads(text), []
        def walk(part):
            for key in part if isinstance(part, dict) else range(len(part)):
                places.append((part, key))
                if isinstance(part[key], (dict, list)):
                    walk(part[key])
        walk(whole)
        part, key = draw.choice(places)
        if isinstance(part, dict) and draw.random() < 0.2:
            del part[key]
        else:
            part[key] = draw.choice(VALUES)
        return json.dumps(whole).encode()

    def archive(content):
        "A sound archive with one damaged member."
        out, source = io.BytesIO(), zipfile.ZipFile(io.BytesIO(content))
        wrong = draw.choice((*source.namelist(), "config.json", "config.json"))
        with zipfile.ZipFile(out, "w") as made:
            for name in source.namelist():
                part = source.read(name)
                if name == wrong and name == "config.json" and draw.random() < 0.7:
                    part = changed(part)
                elif name == wrong:
                    part = damaged(part)[1]
                made.writestr(name, part)
        return out.getvalue()

    sound = {kind: (folder / f"m.{kind}").read_bytes() for kind in ("keras", "h5")}
    output, seen = folder / "out" / "m.tflite", collections.Counter()
    limited(32)
    seconds = 120
    for _ in range(int(sys.argv[3])):
        how = draw.choice(("member", "member", "archive", "h5"))
        kind = "h5" if how == "h5" else "keras"
        content = archive(sound[kind]) if how == "member" else damaged(sound[kind])[1]
        (folder / f"damaged.{kind}").write_bytes(content)
        output.unlink(missing_ok=True)
        end = ends(lambda: kn.tflite.convert(folder / f"damaged.{kind}", output, verify=False))
        left = [p.name for p in output.parent.iterdir()]
        assert left == (["m.tflite"] if end == "result" else []), left
        seen[how, end] += 1
        keras.backend.clear_session()
    assert {end for _, end in seen} == {"result", "error"}, seen
    """
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "out").mkdir()
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((4, 4, 2), name="image"),
            keras.layers.Conv2D(2, 2),
            kn.GroupNormalization(2),
            keras.layers.Dense(2),
        ]
    )
    model.save(folder / "m.keras")
    keras.src.legacy.saving.legacy_h5_format.save_model_to_hdf5(model, str(folder / "m.h5"))
    kn.tflite.convert(model, folder / "m.tflite", verify=False)
    return folder


@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_inspect(seed, folder):
    run_python(INSPECT, folder, seed, 1500 * seed)


@pytest.mark.parametrize(("seed", "files"), [(1, 5), pytest.param(2, 60, marks=pytest.mark.slow)])
def test_compare(seed, files, folder):
    run_python(COMPARE, folder, seed, files)


@pytest.mark.parametrize(("seed", "files"), [(1, 12), pytest.param(2, 120, marks=pytest.mark.slow)])
def test_convert(seed, files, folder):
    run_python(KERAS, folder, seed, files)


def graph_of_graphs(count):
    """A file of some bytes a part that stands for `count` graphs of `count` operators each."""
    made, builder = schema(), flatbuffers.Builder(0)
    made.OperatorStart(builder)
    operator = made.OperatorEnd(builder)
    made.SubGraphStartOperatorsVector(builder, count)
    for _ in range(count):
        builder.PrependUOffsetTRelative(operator)
    operators = builder.EndVector()
    made.SubGraphStart(builder)
    made.SubGraphAddOperators(builder, operators)
    graph = made.SubGraphEnd(builder)
    made.ModelStartSubgraphsVector(builder, count)
    for _ in range(count):
        builder.PrependUOffsetTRelative(graph)
    graphs = builder.EndVector()
    made.ModelStart(builder)
    made.ModelAddSubgraphs(builder, graphs)
    builder.Finish(made.ModelEnd(builder), b"TFL3")
    return bytes(builder.Output())


def test_parts_that_are_read_many_times(tmp_path):
    """A hundred thousand graphs of as many operators, in less than a megabyte."""
    path = tmp_path / "m.tflite"
    path.write_bytes(graph_of_graphs(100_000))
    for call in (
        kn.tflite.inspect,
        lambda p: kn.tflite.compare(p, p),
        lambda p: kn.tflite.bench([p]),
    ):
        with pytest.raises(ConversionError, match=r"take more than the \d+ bytes of the file"):
            call(path)


def test_inputs_that_no_memory_holds(folder, tmp_path):
    """The sizes that a file claims are not made up as samples."""
    content = (folder / "m.tflite").read_bytes()
    sizes = np.array([1, 4, 4, 2], "int32").tobytes()
    huge = np.array([1, 2**20, 2**20, 2], "int32").tobytes()
    path = tmp_path / "m.tflite"
    path.write_bytes(content.replace(sizes, huge))
    for call in (lambda: kn.tflite.compare(path, path), lambda: kn.tflite.bench([path])):
        with pytest.raises(ConversionError, match="too large for samples that are made up"):
            call()


@pytest.mark.parametrize(
    "content", [b"", b"TFL3", b"\0\0\0\0TFL3", b"\xff" * 4 + b"TFL3" + b"\xff" * 99]
)
def test_files_of_nothing(content, tmp_path):
    (tmp_path / "m.tflite").write_bytes(content)
    with pytest.raises(ConversionError):
        kn.tflite.inspect(tmp_path / "m.tflite")
    with pytest.raises(ValueError):
        kn.tflite.run(tmp_path / "m.tflite", np.ones((1, 4, 4, 2), "float32"))


@pytest.mark.parametrize("where", ["outputs", "inputs", "opcodeIndex", "buffer"])
def test_what_refers_to_what_is_not_there(where, tmp_path):
    path = tmp_path / "m.tflite"
    kn.tflite.convert(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), path)
    module = schema()
    model = module.ModelT.InitFromObj(module.Model.GetRootAs(path.read_bytes(), 0))
    (main,) = model.subgraphs
    if where == "buffer":
        main.tensors[0].buffer = 1000
    else:
        setattr(main.operators[0], where, 1000 if where == "opcodeIndex" else [1000])
    builder = flatbuffers.Builder()
    builder.Finish(model.Pack(builder), b"TFL3")
    path.write_bytes(builder.Output())
    with pytest.raises(ConversionError, match=r"is damaged.*1000 is not one of"):
        kn.tflite.inspect(path)
