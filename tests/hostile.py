"""Calls of the raw ops as an adversary makes them: drawn, judged, and compared with NumPy.

Such a call may end the process, so `test_robustness.py` runs this module in one of its own. What is
being called stands in the file given, so that a crash names its example.
"""

import itertools
import math
import sys
from dataclasses import dataclass, field

import numpy as np
import reference
import support
import tensorflow as tf
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from test_activation_op import activate, derivative

from keras_norms import fused as room

INPUTS = {
    "normalize": ("x", "gamma", "beta"),
    "normalize_grad": ("dy", "x", "gamma", "beta", "mean", "variance"),
    "moments": ("x",),
    "moments_grad": ("x", "mean", "residual", "dmean", "dvariance"),
    "scale_shift": ("x", "center", "scale", "shift"),
    "scale_shift_grad": ("dy", "x", "center", "scale", "shift"),
}
LIMIT = 2**56  # of elements and means
ROOM = 2**46  # more means than any machine has memory for
SIZES = (0, 1, 1, 2, 3, 5, 7, 8, 13, 16, 17, 31, 61)
HUGE = (-(2**63), -(2**62), -1, 0, 7, 2**50, 2**55, 2**61, 2**62, 2**63 - 1)
HOW = ("eager", "graph", "partial", "unknown", "unaligned")


@dataclass
class Call:
    """An op with its attributes and the shape and type of each input."""

    op: str
    attributes: dict
    shapes: dict
    dtypes: dict
    how: str
    seed: int = 1
    mean: float = 0.0
    same: bool = False  # dy is x
    twists: list = field(default_factory=list)

    @property
    def x(self) -> tuple:
        return self.shapes["x"]

    @property
    def wide(self) -> str:
        return "float64" if self.dtypes["x"] == "float64" else "float32"


# What a call should be --------------------------------------------------------------------------


def parts(call):
    """The shapes of samples, space, channels and space."""
    a = call.attributes
    first = a["sample_axes"] + a["before_axes"]
    last = first + a["channel_axes"]
    return (call.x[: a["sample_axes"]], call.x[a["sample_axes"] : first], call.x[first:last],
            call.x[last:])  # fmt: skip


def groups(call):
    return call.attributes.get("groups", 1)


def shapes(call) -> dict:
    """The shape that each input should have."""
    a = call.attributes
    samples, _, channels, _ = parts(call)
    each, statistics = (*samples, *channels), (*samples, groups(call))
    activated, gradient = a.get("activation", "none") != "none", call.op.endswith("grad")
    if call.op.startswith("normalize"):
        reads_beta = a["has_beta"] and (activated or not gradient)
        parameters = {
            "gamma": channels if a["has_gamma"] else (0,),
            "beta": channels if reads_beta else (0,),
        }
    else:
        reads_shift = a.get("has_shift") and (activated or not gradient)
        parameters = {
            "center": each if a.get("has_center") else (0,),
            "scale": each,
            "shift": each if reads_shift else (0,),
        }
    known = {"x": call.x, "dy": call.x, **parameters}
    return {name: known.get(name, statistics) for name in INPUTS[call.op]}


def is_right(call) -> bool:
    """Whether the op should compute, by the rules of its documentation and not by its code."""
    a = call.attributes
    axes = [a["sample_axes"], a["before_axes"], a["channel_axes"]]
    if min(axes) < 0 or axes[2] < 1 or sum(axes) > len(call.x) or groups(call) < 1:
        return False
    epsilon = a.get("epsilon", 0.0) + a.get("epsilon_low", 0.0)
    if not (math.isfinite(epsilon) and epsilon >= 0):
        return False
    if a.get("activation", "none") not in ("none", *room.ACTIVATIONS):
        return False
    dtype = call.dtypes["x"]
    if dtype not in room.DTYPES or call.dtypes.get("dy", dtype) != dtype:
        return False
    others = [d for name, d in call.dtypes.items() if name not in ("x", "dy")]
    if any(d != call.wide for d in others) or a.get("U", call.wide) != call.wide:
        return False
    samples, _, channels, _ = parts(call)
    if math.prod(channels) % groups(call) or math.prod(samples) * groups(call) >= LIMIT:
        return False
    return shapes(call) == call.shapes


def is_too_large(call) -> bool:
    return math.prod(parts(call)[0]) * groups(call) >= ROOM


# What it gives ----------------------------------------------------------------------------------


def arrays(call) -> dict:
    """The inputs, as arrays of their types: x of deviation 1, statistics as they are of x."""
    draw = np.random.default_rng(call.seed)
    x = tf.cast(draw.normal(call.mean, 1, call.x), call.dtypes["x"]).numpy()
    values = {"x": x}
    if is_right(call) and not is_too_large(call):
        _, mean, variance = forward(call, x)
        rounded = mean.astype(call.wide)
        values |= {"mean": rounded, "residual": mean - rounded, "variance": variance}
    result = {}
    for name, dtype in call.dtypes.items():
        value = values.get(name)
        if value is None:
            value = draw.normal(call.mean if name == "center" else 0, 1, call.shapes[name])
        value = np.broadcast_to(value.reshape(call.shapes[name]), call.shapes[name])
        result[name] = tf.cast(value, dtype).numpy()
    if call.same:
        result["dy"] = result["x"]
    if call.attributes.get("activation") == "relu" and "dy" in result and is_right(call):
        z = preactivation(call, result)
        result["dy"] = np.where(np.abs(z) < 1e-3, np.zeros_like(result["dy"]), result["dy"])
    return result


def view(call, per_channel=False):
    """[n, s, g, d, t]."""
    n, s, c, t = (math.prod(part) for part in parts(call))
    g = c if per_channel else groups(call)
    return n, s, g, (c // g if g else 1), t


def epsilon(call):
    a = call.attributes
    return float(np.float32(a.get("epsilon", 1))) + float(np.float32(a.get("epsilon_low", 0)))


def forward(call, x, gamma=None, beta=None):
    """y, mean and variance in float64, in the shapes of the op."""
    v = view(call)
    gamma, beta = (None if p is None else np.reshape(p, v[2:4]) for p in (gamma, beta))
    x = reference.float64(x).reshape(v)
    subtract_mean = call.attributes.get("subtract_mean", True)
    want = reference.forward(x, gamma, beta, (1, 3, 4), (2, 3), epsilon(call), subtract_mean)
    statistics = (*parts(call)[0], groups(call))
    return want.y.reshape(call.x), want.mean.reshape(statistics), want.variance.reshape(statistics)


def if_there(call, given, name, flag):
    return given[name] if call.attributes[flag] else None


def coefficients(call, given):
    """center, scale and shift, to be spread over the view of a group for each channel."""
    n, _, c, _, _ = view(call, per_channel=True)
    shape = (n, 1, c, 1, 1)
    found = []
    for name in ("center", "scale", "shift"):
        there = given[name].shape == shapes(call)["scale"]
        there = there and call.attributes.get(f"has_{name}", True)
        value = reference.float64(given[name]).reshape(shape) if there else np.zeros(shape)
        found.append(value)
    return found


def preactivation(call, given):
    if call.op.startswith("normalize"):
        there = "beta" in given and given["beta"].shape == parts(call)[2]
        beta = given["beta"] if there and call.attributes["has_beta"] else None
        return forward(call, given["x"], if_there(call, given, "gamma", "has_gamma"), beta)[0]
    center, scale, shift = coefficients(call, given)
    x = reference.float64(given["x"]).reshape(view(call, per_channel=True))
    return ((x - center) * scale + shift).reshape(call.x)


def peak(value) -> float:
    return float(np.abs(value).max(initial=0))


def expected(call, given):
    """Each output with the bounds it is held to: (value, atol, rtol); atol None: its shape only.

    The bounds are those of test_fused.py and test_activation_op.py.
    """
    a, dtype = call.attributes, call.dtypes["x"]
    x = reference.float64(given["x"])
    name = a.get("activation", "none")
    activated = name != "none"
    eps = support.EPS64 if dtype == "float64" else support.EPS32
    promise = 32 * eps * (1 + peak(x)) if dtype == "float64" else support.FORWARD["fused"]
    back = promise if dtype == "float64" else support.GRADIENT
    rounding = support.ROUNDING[dtype]
    step = rounding if activated and dtype in ("float16", "bfloat16") else 0  # of dz, kept as x is
    tiny = 2.0**-25 if dtype == "float16" else 0  # half of the smallest number
    if call.op == "moments":
        _, mean, variance = forward(call, x)
        residual = mean - mean.astype(call.wide)
        size = float(np.spacing(np.abs(mean).astype(call.wide)).max(initial=0))
        return [(mean, promise, eps), (residual, promise + size, 0), (variance, promise, promise)]
    if call.op == "moments_grad":
        n, s, g, d, t = view(call)
        means = (n, 1, g, 1, 1)
        mean, residual, dmean, dvariance = (
            reference.float64(given[k]).reshape(means) for k in INPUTS["moments_grad"][1:]
        )
        centred = x.reshape(view(call)) - mean - residual
        want = (dmean + 2 * dvariance * centred) / max(1, s * d * t)
        return [(want.reshape(call.x), back * peak(want) + tiny, rounding)]
    z = preactivation(call, given)
    slope = derivative(name, z) if activated else np.ones_like(z)
    dy = reference.float64(given.get("dy", np.zeros_like(z)))
    dz = dy * slope
    if call.op.startswith("normalize"):
        gamma = if_there(call, given, "gamma", "has_gamma")
        _, mean, variance = forward(call, x)
        # Hardly any spread and hardly any epsilon: rounding is being normalized.
        close = (variance + epsilon(call) < 1e-4).any()
        if call.op == "normalize":
            y = activate(name, z) if activated else z
            unit = support.largest(gamma) * (1 if a["subtract_mean"] else max(1, peak(z)))
            atol = None if close else 1.13 * promise * unit + tiny
            return [(y, atol, rounding), (mean, promise, eps), (variance, promise, promise)]
        v = view(call)
        weight = None if gamma is None else np.reshape(gamma, v[2:4])
        shaped = dz.reshape(v), x.reshape(v), weight, (1, 3, 4), (2, 3), epsilon(call)
        want = reference.backward(*shaped, a["subtract_mean"])
        h = (x - spread_of(call, mean)) / np.sqrt(spread_of(call, variance) + epsilon(call))
        atol = back * peak(want.dx) + (8 * eps + 2 * step) * want.scale + tiny
        outputs = [(want.dx.reshape(call.x), atol, rounding)]
        sums = {"has_gamma": (want.dgamma, dz * h), "has_beta": (want.dbeta, dz)}
        for flag, (value, terms) in sums.items():
            lost = step * np.abs(terms.reshape(v)).sum((0, 1, 4)).max(initial=0)
            atol = back * peak(value) + 8 * eps * max(peak(dy), peak(terms)) + lost
            value = value.reshape(parts(call)[2]) if a[flag] else np.zeros(0)
            outputs.append((value, atol, 0))
        return [(value, None if close else atol, rtol) for value, atol, rtol in outputs]
    v = view(call, per_channel=True)
    center, scale, shift = coefficients(call, given)
    x, dy, dz = (value.reshape(v) for value in (x, dy, dz))
    terms = eps * (peak((x - center) * scale) + peak(shift))
    if call.op == "scale_shift":
        return [(activate(name, z) if activated else z, 4 * terms + tiny, rounding)]
    bound = 64 * eps + (terms if activated else 0)
    atol = (bound + step) * peak(dy * scale) + tiny
    outputs = [((dz * scale).reshape(call.x), atol, rounding)]
    for value in (dz * (x - center), dz):
        want = value.sum((1, 3, 4))
        lost = (step + 4 * bound) * peak(value)
        lost += step * np.abs(value).sum((1, 3, 4)).max(initial=0)
        atol = (support.GRADIENT if eps == support.EPS32 else 1e-12) * peak(want) + lost
        outputs.append((want.reshape(shapes(call)["scale"]), atol, 0))
    return outputs


def spread_of(call, statistics):
    n, _, g, _, _ = view(call)
    return np.broadcast_to(statistics.reshape(n, 1, g, 1, 1), view(call)).reshape(call.x)


# Calling it -------------------------------------------------------------------------------------


def unaligned(array):
    """The array as a tensor that begins one element after an aligned address, without a copy."""
    if array.dtype.name == "bfloat16" or not array.size:
        return tf.constant(array)
    size = array.itemsize
    buffer = np.zeros((array.size + 1) * size + 64, np.uint8)
    start = -buffer.ctypes.data % 64 + size
    inside = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    inside[...] = array
    tensor = tf.experimental.dlpack.from_dlpack(inside.__dlpack__())
    assert np.asarray(tensor).ctypes.data % 64 == size
    return tensor


def specification(call, tensor, draw):
    if call.how == "unknown":
        return tf.TensorSpec(None, tensor.dtype)
    keep = draw.random(tensor.ndim) < 0.5
    sizes = [
        size if call.how != "partial" or k else None
        for size, k in zip(tensor.shape, keep, strict=True)
    ]
    return tf.TensorSpec(sizes, tensor.dtype)


def run(call, given):
    """The outputs, as tensors. In a graph x and dy are made there, and x must stay what it was."""
    op = getattr(room._ops, f"keras_norms_{call.op}")
    tensors = {
        name: (unaligned if call.how == "unaligned" else tf.constant)(value)
        for name, value in given.items()
    }
    if call.same:
        tensors["dy"] = tensors["x"]
    if call.how in ("eager", "unaligned"):
        outputs = op(**tensors, **call.attributes)
        for name, value in given.items():
            np.testing.assert_array_equal(tensors[name], value, err_msg=f"{name} has changed")
        return tf.nest.flatten(outputs)
    held = call.seed % 2 == 0

    def function(tensors):
        # Fresh memory that nobody else holds, so that the op may write its output there.
        fresh = {name: -value for name, value in tensors.items()}
        if call.same:
            fresh["dy"] = fresh["x"]
        outputs = tf.nest.flatten(op(**fresh, **call.attributes))
        return outputs, list(fresh.values()) if held else []

    draw = np.random.default_rng(call.seed)
    signature = {name: specification(call, value, draw) for name, value in tensors.items()}
    function = tf.function(function, jit_compile=call.how == "xla", autograph=False)
    concrete = function.get_concrete_function(signature)
    outputs, kept = concrete({name: -value for name, value in tensors.items()})
    for (name, value), got in zip(given.items(), kept, strict=False):
        np.testing.assert_array_equal(got, value, err_msg=f"{name} has changed")
    for inferred, output in zip(concrete.structured_outputs[0], outputs, strict=True):
        assert inferred.shape.is_compatible_with(output.shape), (inferred.shape, output.shape)
        assert inferred.dtype == output.dtype
        if call.how in ("graph", "xla"):
            assert inferred.shape.is_fully_defined()
    return outputs


def check(call):
    """The op computes what it should, or refuses."""
    given = arrays(call)
    if not is_right(call) or is_too_large(call):
        errors = (tf.errors.InvalidArgumentError, ValueError)
        if any(twist.startswith("type") for twist in call.twists):
            # TensorFlow's: no kernel for these, eagerly; no op for these, in a graph.
            errors += (tf.errors.NotFoundError, TypeError)
        if is_right(call):
            errors = (tf.errors.ResourceExhaustedError,)
        try:
            run(call, given)
        except errors:
            return
        raise AssertionError("should have been refused")
    outputs = run(call, given)
    with np.errstate(all="ignore"):  # 0 / 0 without spread and epsilon
        wanted = expected(call, given)
    for i, (got, (want, atol, rtol)) in enumerate(zip(outputs, wanted, strict=True)):
        assert got.shape == want.shape, f"output {i}: {got.shape}, wanted {want.shape}"
        if atol is not None:
            got, fine = reference.float64(got), np.isfinite(want)
            error = np.abs(got - want)[fine] - atol - rtol * np.abs(want[fine])
            assert not error.size or error.max() <= 0, f"output {i} is off by {error.max()} more"


# Drawing it -------------------------------------------------------------------------------------


@st.composite
def calls(draw, op, how):
    """A right call, or one with up to two things wrong or just odd."""
    rank = draw(st.integers(1, 6))
    shape = draw(st.lists(st.sampled_from(SIZES), min_size=rank, max_size=rank))
    while math.prod(shape) > 2000:
        shape[int(np.argmax(shape))] = 2
    samples = draw(st.integers(0, rank - 1))
    before = draw(st.integers(0, rank - 1 - samples))
    channels = draw(st.integers(1, rank - samples - before))
    first = samples + before
    c = math.prod(shape[first : first + channels])
    dtype = draw(st.sampled_from(room.DTYPES))
    attributes = {"sample_axes": samples, "before_axes": before, "channel_axes": channels}
    if not op.startswith("scale_shift"):
        attributes["groups"] = draw(st.sampled_from([g for g in range(1, c + 2) if c % g == 0]))
    if op.startswith("normalize"):
        attributes |= {
            "epsilon": draw(st.sampled_from([1e-3, 1e-5, 0.0, 1.0, 1e30])),
            "epsilon_low": draw(st.sampled_from([0.0, 1e-12])),
            **{flag: draw(st.booleans()) for flag in ("has_gamma", "has_beta")},
        }
    if op.startswith("scale_shift"):
        attributes |= {flag: draw(st.booleans()) for flag in ("has_center", "has_shift")}
    if op.startswith(("normalize", "scale_shift")):
        attributes["activation"] = draw(st.sampled_from(["none", *room.ACTIVATIONS]))
    if op in ("normalize", "normalize_grad", "moments"):
        attributes["subtract_mean"] = draw(st.booleans())
    call = Call(
        op,
        attributes,
        {"x": tuple(shape)},
        {"x": dtype},
        draw(st.sampled_from(how)),
        draw(st.integers(0, 2**16)),
        draw(st.sampled_from([0.0, 3.0, 100.0])),
    )
    call.shapes = shapes(call)
    call.dtypes = {name: dtype if name in ("x", "dy") else call.wide for name in INPUTS[op]}
    if op == "moments":
        attributes["U"] = call.wide
    # At relu's kink dy is made 0, so there it is not x.
    call.same = "dy" in call.dtypes and attributes["activation"] != "relu" and draw(st.booleans())
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 1, 2]))):
        call.twists.append(draw(st.sampled_from(TWISTS))(call, draw))
    if call.same and (call.shapes["dy"], call.dtypes["dy"]) != (call.x, call.dtypes["x"]):
        call.same = False
    return call


def axes(call, draw):
    names = ("sample_axes", "before_axes", "channel_axes", "groups")
    name = draw(st.sampled_from([n for n in names if n in call.attributes]))
    call.attributes[name] = draw(st.sampled_from(HUGE))
    return name


def all_axes(call, draw):
    for name in ("sample_axes", "before_axes", "channel_axes"):
        call.attributes[name] = 2**62
    return "axes whose sum overflows"


def epsilons(call, draw):
    if "epsilon" in call.attributes:
        name = draw(st.sampled_from(["epsilon", "epsilon_low"]))
        call.attributes[name] = draw(st.sampled_from([math.nan, math.inf, -math.inf, -1e-3, 3e38]))
    return "epsilon"


def activations(call, draw):
    if "activation" in call.attributes:
        call.attributes["activation"] = draw(st.sampled_from(["tanh", "", "RELU", "none\0"]))
    return "activation"


def flags(call, draw):
    names = [name for name in call.attributes if name.startswith("has_")]
    for name in names[:1]:
        call.attributes[name] = not call.attributes[name]
    return "flag"


def one_shape(call, draw):
    name = draw(st.sampled_from(sorted(call.shapes)))
    shape = call.shapes[name]
    last = shape[-1] if shape else 1
    call.shapes[name] = draw(
        st.sampled_from(
            [(), (0,), (*shape, 1), (1, *shape), shape[:-1], shape[::-1], (*shape[:-1], last + 1)]
        )
    )
    return f"shape of {name}"


def one_type(call, draw):
    name = draw(st.sampled_from(sorted(call.dtypes)))
    call.dtypes[name] = draw(st.sampled_from(["float64", "float32", "float16", "int32"]))
    return f"type of {name}"


def other_types(call, draw):
    other = {"float32": "float64", "float64": "float32"}[call.wide]
    for name in call.dtypes:
        if name not in ("x", "dy"):
            call.dtypes[name] = other
    if "U" in call.attributes:
        call.attributes["U"] = other
    return "types of parameters"


TWISTS = (axes, axes, all_axes, epsilons, activations, flags, one_shape, one_shape, one_shape,
          one_type, other_types)  # fmt: skip


# What was found to be wrong once.
FOUND = [
    # The bytes of all outputs together overflowed, and XLA crashed.
    Call(
        "normalize",
        {"sample_axes": 1, "before_axes": 1, "channel_axes": 1, "groups": 2**61, "epsilon": 1e-3}
        | {"subtract_mean": True, "has_gamma": False, "has_beta": False},
        {"x": (3, 5, 0), "gamma": (0,), "beta": (0,)},
        dict.fromkeys(("x", "gamma", "beta"), "float32"),
        "xla",
    ),
    # Just below: no memory, but no crash.
    Call(
        "moments",
        {"sample_axes": 0, "before_axes": 1, "channel_axes": 1, "groups": 2**55, "U": "float64"},
        {"x": (5, 0)},
        {"x": "float64"},
        "xla",
    ),
]


def wrong(how):
    """By kind, calls with that one thing wrong: however few are drawn, each kind is among them."""
    right = {"sample_axes": 1, "before_axes": 1, "channel_axes": 1, "groups": 1, "epsilon": 1e-3}
    right |= {"epsilon_low": 0.0, "has_gamma": True, "has_beta": True, "subtract_mean": True}
    right["activation"] = "none"
    inputs = {"x": (2, 3, 4), "gamma": (4,), "beta": (4,)}
    types = dict.fromkeys(inputs, "float32")
    assert is_right(Call("normalize", right, inputs, types, how))

    def call(kind, shapes=inputs, dtypes=types, **attributes):
        twists = [kind]
        return Call("normalize", right | attributes, shapes, dtypes, how, twists=twists)

    calls = [
        call("axes whose sum overflows", **dict.fromkeys(list(right)[:3], 2**62)),
        *(call(name, **{name: 7}) for name in list(right)[:4]),
        call("epsilon", epsilon=math.nan),
        call("activation", activation="tanh"),
        call("flag", has_gamma=False),
        call("shape of x", shapes=inputs | {"x": (2, 3, 5)}),
        call("type of x", dtypes=types | {"x": "float64"}),
        call("types of parameters", dtypes=types | {"gamma": "float64", "beta": "float64"}),
    ]
    return {call.twists[0]: call for call in calls}


def fuzz(file, examples, how):
    """Checks FOUND, what is `wrong`, and that many calls more of each op."""
    seen = set()

    def one(call):
        with open(file, "w") as out:
            print(call, file=out)
        seen.add((call.op, call.how, is_right(call)))
        seen.update(twist for twist in call.twists if not is_right(call))
        check(call)

    def drawn(call):
        # Empty, but NumPy has no array of such a shape.
        assume(not is_right(call) or is_too_large(call) or 8 * groups(call) < 2**63)
        one(call)

    for call in FOUND:
        if call.how in how:
            one(call)
    for mode in {*how} & {"eager", "graph"}:
        for call in wrong(mode).values():
            assert not is_right(call), call
            check(call)
    limits = settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    for op in INPUTS:
        limits(given(calls(op, how))(drawn))()
    return seen


if __name__ == "__main__":
    found = fuzz(sys.argv[1], int(sys.argv[2]), HOW) | fuzz(sys.argv[1], int(sys.argv[3]), ("xla",))
    # The strategy reaches every op right and wrong, every mode, and every kind of wrong.
    reached = [f for f in found if isinstance(f, tuple)]
    assert {(op, right) for op, _, right in reached} == {*itertools.product(INPUTS, (True, False))}
    assert {how for _, how, _ in reached} == {*HOW, "xla"}
    if (
        int(sys.argv[2]) >= 1000
    ):  # of few calls it depends on each change of the code which are drawn
        assert {*wrong("eager")} <= found, {*wrong("eager")} - found
