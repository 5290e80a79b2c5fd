"""The dispatch point: which path runs, what it gives back, and that it says why not."""

import threading

import keras
import numpy as np
import pytest
import reference
import support
import tensorflow as tf
from conftest import need_fused

import keras_norms as kn
from keras_norms.geometry import geometry
from keras_norms.normalize import normalize, scale_shift


@pytest.fixture
def unset():
    """The kernel as it is, put back after the test."""
    previous = kn.get_kernel()
    yield
    kn.set_kernel(previous)


def fused_nodes(function, *arguments) -> list[str]:
    """Types of our ops in the graph of a function."""
    graph = tf.function(function, autograph=False).get_concrete_function(*arguments).graph
    return [op.type for op in graph.get_operations() if op.type.startswith("KerasNorms")]


def test_set_and_get(unset):
    for kernel in ("auto", "fused", "portable"):
        kn.set_kernel(kernel)
        assert kn.get_kernel() == kn.kernel_info().kernel == kernel
    with pytest.raises(ValueError, match=r"must be one of .*'auto', 'fused', 'portable'.*'fast'"):
        kn.set_kernel("fast")
    assert kn.get_kernel() == "portable"


@pytest.mark.parametrize("kernel, nodes", [("auto", 1), ("fused", 1), ("portable", 0)])
def test_the_kernel_that_is_set_runs(kernel, nodes, unset):
    need_fused()
    kn.set_kernel(kernel)
    found = fused_nodes(kn.ops.layer_norm, tf.zeros((3, 7)))
    assert found == ["KerasNorms>Normalize"] * nodes
    moving = {"mean": tf.zeros(7), "variance": tf.ones(7)}
    found = fused_nodes(lambda x: kn.ops.batch_norm(x, **moving).y, tf.zeros((3, 7)))
    assert found == ["KerasNorms>ScaleShift"] * nodes


def test_portable_block(unset):
    need_fused()
    kn.set_kernel("fused")
    seen = {}

    def look():
        seen["other thread"] = kn.get_kernel()

    with kn.portable():
        assert kn.get_kernel() == "portable"
        assert fused_nodes(kn.ops.layer_norm, tf.zeros((3, 7))) == []
        with kn.portable():
            pass
        assert kn.get_kernel() == "portable"
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen == {"other thread": "fused"}
    assert kn.get_kernel() == "fused"
    with pytest.raises(RuntimeError, match="stop"), kn.portable():
        raise RuntimeError("stop")
    assert kn.get_kernel() == "fused"


def test_variable():
    script = "import keras_norms as kn; print(kn.get_kernel())"
    output = support.run_python(script, env={"KERAS_NORMS_KERNEL": "portable"}).stdout
    assert output.split() == ["portable"]


def test_wrong_variable():
    result = support.run_python("import keras_norms", env={"KERAS_NORMS_KERNEL": "x"}, check=False)
    assert result.returncode != 0
    assert "must be one of ('auto', 'fused', 'portable'). Received: 'x'" in result.stderr


def test_without_library(tmp_path):
    """No library: "auto" is silently portable, "fused" says why not."""
    script = """
    import numpy as np, keras_norms as kn
    info = kn.kernel_info()
    assert not info.fused and info.why_not and "\\n" not in info.why_not, info
    x = np.arange(12, dtype="float32").reshape(3, 4)
    y = kn.LayerNormalization(epsilon=0.0)(x)
    want = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    np.testing.assert_allclose(y, want, rtol=1e-5)
    kn.set_kernel("fused")
    try:
        kn.ops.layer_norm(x)
    except RuntimeError as error:
        print(error)
    """
    output = support.run_python(script, env={"KERAS_NORMS_LIBRARY": str(tmp_path / "no.so")}).stdout
    assert "cannot serve here" in output and "no.so" in output


def test_library_of_another_tensorflow_is_not_opened(tmp_path):
    library = tmp_path / "other.so"
    library.write_bytes(
        b"\x7fELF KERAS_NORMS_RECORD"
        b'{"tensorflow": "2.1.0", "keras_norms": "0.1.0", "sources": "x"}\0'
    )
    script = """
    import keras_norms as kn
    info = kn.kernel_info()
    assert not info.fused
    print(info.why_not)
    """
    output = support.run_python(script, env={"KERAS_NORMS_LIBRARY": str(library)}).stdout
    assert len(output.strip().splitlines()) == 1
    assert "2.1.0" in output and tf.__version__ in output


def test_integers_and_half_types_of_the_op(unset):
    """What the op is not for is refused by "fused" with the reason, and served by "auto"."""
    need_fused()
    x = tf.cast(tf.ones((3, 4)), "float8_e5m2")
    view = geometry((3, 4), -1, apart="positions")
    kn.set_kernel("fused")
    with pytest.raises(RuntimeError, match=r"cannot serve here: .*float8_e5m2"):
        normalize(x, view, epsilon=1e-3)


def test_statistics_and_their_shapes(kernel, mode, rng):
    cases = [
        ((3, 5, 7, 11), -1, "nothing", -1, (11,)),
        ((3, 5, 7, 6), -1, "samples", 2, (3, 2)),
        ((3, 6, 5, 7), 1, "samples", -1, (3, 6)),
        ((3, 5, 7), -1, "positions", 1, (3, 5, 1)),
        ((3, 5, 7), (0, 2), "positions", 1, (5, 1)),
        ((3, 7, 5, 2), 1, "positions", 1, (3, 5, 2, 1)),
        ((3, 7, 5), 0, "positions", 1, (7, 5, 1)),
    ]
    for shape, axis, apart, groups, want in cases:
        view = geometry(shape, axis, apart=apart, groups=groups)
        x = rng.normal(1e2, 1, shape).astype("float32")
        run = support.compiled(lambda x, view=view: tuple(normalize(x, view, epsilon=1e-3)), mode)
        _, mean, variance = run(tf.constant(x))
        assert mean.shape == variance.shape == want
        assert mean.dtype == variance.dtype == "float32"
        axes = {
            "nothing": tuple(a for a in range(len(shape)) if a != len(shape) - 1),
            "positions": reference.positive(axis, len(shape)),
        }
        if apart in axes:
            parts = reference.moments(x, axes[apart])
        else:
            parts = reference.group_norm(x, None, None, groups=groups, axis=axis)[1:]
        support.close(mean, parts[0].reshape(want), atol=support.EPS32 * 1e2)
        support.close(variance, parts[1].reshape(want), rtol=2 * support.FORWARD[kernel], atol=0)


@pytest.mark.parametrize(
    "dtype, size, gamma, nodes",
    [
        ("float32", 5, True, ["KerasNorms>Normalize", "KerasNorms>ScaleShift"]),
        ("float64", 5, True, ["KerasNorms>Normalize", "KerasNorms>ScaleShift"]),
        ("float32", 5, False, ["KerasNorms>Normalize"]),
        ("float32", None, True, ["Transpose", "KerasNorms>Normalize", "Transpose"]),
        ("bfloat16", 5, True, ["Transpose", "KerasNorms>Normalize", "Transpose"]),
    ],
)
def test_what_follows_the_axis_is_not_transposed(dtype, size, gamma, nodes, fused, rng):
    """With the activation applied within the last op."""
    x = rng.normal(1e2, 1, (3, 11, 5)).astype("float32")
    gamma, beta = rng.normal(size=(2, 11)) if gamma else (None, None)

    @tf.function(autograph=False, input_signature=[tf.TensorSpec((None, 11, size), dtype)])
    def run(x):
        view = geometry(x.shape, 1, apart="positions")
        given = {"gamma": gamma, "beta": beta, "epsilon": 1e-3}
        return normalize(x, view, activation=keras.activations.relu, **given).y

    operators = [op.type for op in run.get_concrete_function().graph.get_operations()]
    assert [t for t in operators if t.startswith(("KerasNorms", "Transpose", "Relu"))] == nodes
    want = reference.layer_norm(np.float64(tf.cast(x, dtype)), gamma, beta, epsilon=1e-3, axis=1).y
    atol = support.FORWARD["fused"] if dtype != "bfloat16" else 2**-8
    support.close(run(tf.cast(x, dtype)), np.maximum(want, 0), atol=atol * np.abs(want).max())


def test_statistics_carry_no_gradient(kernel, rng):
    view = geometry((3, 7), -1, apart="positions")
    x = tf.constant(rng.normal(size=(3, 7)), "float32")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(x)
        y, mean, variance = normalize(x, view, epsilon=1e-3)
    assert tape.gradient(mean, x) is None
    assert tape.gradient(variance, x) is None
    seed = np.arange(21, dtype="float32").reshape(3, 7) ** 2
    want = reference.layer_norm_gradients(seed, x, None, epsilon=1e-3).dx
    support.close(tape.gradient(y, x, seed), want, atol=support.GRADIENT * np.abs(want).max())


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_types_of_the_results(dtype, kernel):
    view = geometry((3, 7), -1, apart="positions")
    y, mean, variance = normalize(tf.ones((3, 7), dtype), view, epsilon=1e-3)
    wide = "float64" if dtype == "float64" else "float32"
    assert (y.dtype, mean.dtype, variance.dtype) == (dtype, wide, wide)
    np.testing.assert_array_equal(mean, np.ones((3, 1)))
    np.testing.assert_array_equal(variance, np.zeros((3, 1)))


@pytest.mark.parametrize(
    "shape, axis, apart, groups",
    [
        ((3, 5, 7, 6), -1, "samples", 2),
        ((3, 6, 5, 7), 1, "samples", -1),
        ((3, 5, 7), -1, "nothing", -1),
        ((3, 5, 7), (0, 2), "positions", 1),
    ],
)
def test_scale_shift(shape, axis, apart, groups, kernel, mode, rng):
    """Coefficients per sample axes and channel axes, forward and gradients."""
    view = geometry(shape, axis, apart=apart, groups=groups)
    moved = tuple(shape[a] for a in view.order) if view.order else shape
    channels = view.channel_axes
    size = (*moved[: view.samples], *(moved[a] for a in channels))
    x, dy = rng.normal(size=(2, *shape)).astype("float32")
    center, scale, shift = rng.normal(size=(3, *size)).astype("float32")

    def step(x, *coefficients):
        with tf.GradientTape() as tape:
            tape.watch((x, *coefficients))
            y = scale_shift(
                x, view, center=coefficients[0], scale=coefficients[1], shift=coefficients[2]
            )
        return y, *tape.gradient(y, (x, *coefficients), dy)

    got = support.compiled(step, mode)(*map(tf.constant, (x, center, scale, shift)))
    order = view.order or tuple(range(len(shape)))
    wide_x, wide_dy = (v.astype("float64").transpose(order) for v in (x, dy))
    wide = [
        v.astype("float64").reshape(
            moved[: view.samples]
            + tuple(moved[a] if a in channels else 1 for a in range(view.samples, len(moved)))
        )
        for v in (center, scale, shift)
    ]
    other = view.space_axes
    back = np.argsort(order)
    h = wide_x - wide[0]
    want = (
        (h * wide[1] + wide[2]).transpose(back),
        (wide_dy * wide[1]).transpose(back),
        -(wide_dy.sum(other) * wide[1].reshape(size)),
        (wide_dy * h).sum(other),
        wide_dy.sum(other),
    )
    for name, result, value in zip(
        ("y", "dx", "dcenter", "dscale", "dshift"), got, want, strict=True
    ):
        # Sums of up to 105 products of normal numbers.
        support.close(
            result, value, atol=support.EPS32 * 8 * max(np.abs(value).max(), 4), what=name
        )


def test_parameters_of_the_wrong_shape(kernel):
    view = geometry((3, 5, 7), -1, apart="positions")
    for shape in ((5,), (1,), (7, 1), ()):
        with pytest.raises(ValueError, match=r"`gamma` must have .* channel sizes=\(7,\)"):
            normalize(tf.zeros((3, 5, 7)), view, gamma=tf.zeros(shape), epsilon=1e-3)
        with pytest.raises(ValueError, match=r"`beta` must have .*Received: beta.shape="):
            normalize(tf.zeros((3, 5, 7)), view, beta=tf.zeros(shape), epsilon=1e-3)


def test_import_is_quick():
    """`import keras_norms` takes no longer than `import keras` and 0.3 s (here: CPU time)."""
    script = """
    import time, keras
    start = time.process_time()
    import keras_norms
    print(time.process_time() - start)
    """
    seconds = [float(support.run_python(script).stdout)]
    if seconds[0] >= 0.3:  # a slow moment of the machine, perhaps
        seconds.append(float(support.run_python(script).stdout))
    assert min(seconds) < 0.3
