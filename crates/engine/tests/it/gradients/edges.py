"""Writes edges.jsonl: what PyTorch's gradients are where functions have kinks,
ties, poles and flat ends, for every operator with a gradient rule.

    python edges.py > edges.jsonl

needs PyTorch (2.15 made the file) and NumPy. A line is a model of a few nodes,
its inputs, the gradient of its output `y`, and the gradients of its inputs in
both precisions; `null` stands for an input without one.
"""

import json
import math

import numpy as np
import torch

F = torch.nn.functional
INF = math.inf
NUMBERS = [0.0, -0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, 3.0, -3.0, 6.0, 20.0, -20.0, 90.0, -90.0, 1000.0, -1000.0]
IMAGE = np.array([[[[1, 1, 0, 2], [1, 1, 0, 2], [0, 0, 0, 0], [5, 5, 0, 0]]]], float)


class Ints(list):
    """A constant of integers."""


def ints(values, shape=None):
    made = Ints(np.array(values, np.int64).flatten().tolist())
    made.shape = list(np.shape(values)) if shape is None else shape
    return made


def plain(values):
    return [x if math.isfinite(x) else str(x) for x in np.asarray(values, float).flatten().tolist()]


def attribute(value):
    return {"float": value} if isinstance(value, float) else value


def emit(name, nodes, inputs, function, up=None, opset=22, fixed=(), codes=None):
    """`inputs` are arrays and constants by name; those in `fixed` have no gradient."""
    expected = {}
    upstream = None
    for kind in (torch.float32, torch.float64):
        tensors = {}
        for key, value in inputs.items():
            if isinstance(value, Ints):
                tensors[key] = torch.tensor(list(value)).reshape(value.shape)
            else:
                wanted = key not in fixed
                tensors[key] = torch.tensor(np.asarray(value, float), dtype=kind).requires_grad_(wanted)
        y = function(*tensors.values())
        if upstream is None:
            upstream = np.arange(1, y.numel() + 1).reshape(y.shape) / 4 if up is None else np.array(up, float).reshape(y.shape)
        y.backward(torch.tensor(upstream, dtype=kind))
        free = [k for k, v in inputs.items() if not isinstance(v, Ints) and k not in fixed]
        expected[str(kind)[-7:]] = [plain(tensors[k].grad) if tensors[k].grad is not None else None for k in free]
    line = {
        "name": name,
        "opset": opset,
        "nodes": [[op, i, o, {k: attribute(v) for k, v in a.items()}] for op, i, o, a in nodes],
        "inputs": [
            {
                "name": k,
                "shape": v.shape if isinstance(v, Ints) else list(np.shape(v)),
                "fixed": isinstance(v, Ints) or k in fixed,
                "type": (codes or {}).get(k, "i64" if isinstance(v, Ints) else "float"),
                "values": list(v) if isinstance(v, Ints) else plain(v),
            }
            for k, v in inputs.items()
        ],
        "upstream": {"shape": list(upstream.shape), "values": plain(upstream)},
        "f32": expected["float32"],
        "f64": expected["float64"],
    }
    print(json.dumps(line, separators=(",", ":")))


def one(op, inputs, function, attributes=None, outputs=1, name=None, skip=(), **more):
    """One node; `skip` are positions of inputs that are left out."""
    names = list(inputs)
    for position in sorted(skip):
        names.insert(position, "")
    ends = ["y", *[f"y{i}" for i in range(1, outputs)]]
    emit(name or op, [[op, names, ends, attributes or {}]], inputs, function, **more)


def unary(op, function, x=NUMBERS, attributes=None, up=None, name=None, **more):
    one(op, {"x": np.array(x, float)}, function, attributes, up=up, name=name, **more)


# Functions of one number.
unary("Neg", lambda x: -x)
unary("Abs", torch.abs)
unary("Exp", torch.exp, [0, 1, -1, -90, -1000, 20])
unary("Log", torch.log, [1, 2, 1e-30, 1e30])
unary("Sqrt", torch.sqrt, [1, 4, 1e-30, 1e30])
unary("Reciprocal", torch.reciprocal, [1, -2, 1e-15, 1e30])
for op, function in [("Sin", torch.sin), ("Cos", torch.cos), ("Tan", torch.tan), ("Atan", torch.atan), ("Asinh", torch.asinh)]:
    unary(op, function, [0, 1, -1, 1.5, -3, 1e15 if op in ("Atan", "Asinh") else 3])
unary("Sinh", torch.sinh, [0, 1, -1, 20])
unary("Cosh", torch.cosh, [0, 1, -1, 20])
unary("Asin", torch.asin, [0, 0.5, -0.5, 0.999])
unary("Acos", torch.acos, [0, 0.5, -0.5, 0.999])
unary("Acosh", torch.acosh, [1.001, 2, 1e15])
unary("Atanh", torch.atanh, [0, 0.5, -0.999])
unary("Erf", torch.erf)
unary("Identity", lambda x: x)
unary("Cast", lambda x: x + 0, attributes={"to": "same"})
one("CastLike", {"x": np.array(NUMBERS), "like": np.zeros(1)}, lambda x, like: x + 0, fixed=["like"])
unary("Relu", F.relu)
unary("Relu", F.relu, [0, -1, 1], up=[INF, -INF, 2], name="Relu/masked")
unary("LeakyRelu", lambda x: F.leaky_relu(x, 0.25), attributes={"alpha": 0.25})
unary("LeakyRelu", F.leaky_relu, name="LeakyRelu/default")
unary("ThresholdedRelu", lambda x: F.threshold(x, 1.0, 0.0))
unary("ThresholdedRelu", lambda x: F.threshold(x, 1.0, 0.0), [1, 0, 2], up=[INF, -INF, 2], name="ThresholdedRelu/masked")
unary("Elu", lambda x: F.elu(x, 2.0), attributes={"alpha": 2.0})
unary("Elu", F.elu, name="Elu/default")
unary("Selu", F.selu)
unary("Celu", lambda x: F.celu(x, 2.0), attributes={"alpha": 2.0})
unary("Sigmoid", torch.sigmoid)
unary("HardSigmoid", F.hardsigmoid, [0, 1, -1, 2.5, 4, -4, 1000], attributes={"alpha": 1 / 6, "beta": 0.5})
unary("HardSigmoid", F.hardsigmoid, [4, -4, 0], attributes={"alpha": 1 / 6, "beta": 0.5}, up=[INF, INF, 1], name="HardSigmoid/masked")
unary("HardSwish", F.hardswish)
unary("HardSwish", F.hardswish, [-3, -4, 0, 3], up=[INF, -INF, 1, 2], name="HardSwish/masked")
unary("Swish", F.silu, opset=24)
unary("Tanh", torch.tanh)
unary("Softplus", F.softplus)
unary("Softsign", F.softsign)
unary("Gelu", F.gelu)
unary("Gelu", lambda x: F.gelu(x, approximate="tanh"), attributes={"approximate": "tanh"}, name="Gelu/tanh")
unary("Mish", F.mish)
one(
    "Clip", {"x": np.array(NUMBERS), "low": np.array(0.0), "high": np.array(6.0)},
    lambda x, low, high: torch.clamp(x, 0, 6), fixed=["low", "high"],
)
one(
    "Clip", {"x": np.array([-1.0, 0.0, 3.0, 7.0]), "low": np.array(0.0), "high": np.array(6.0)},
    lambda x, low, high: torch.clamp(x, 0, 6), fixed=["low", "high"], up=[INF, -INF, 1, INF], name="Clip/masked",
)
one("Clip", {"x": np.array([-1.0, 0.0, 3.0]), "low": np.array(0.0)}, lambda x, low: torch.clamp(x, min=0), fixed=["low"], name="Clip/min")
one("Clip", {"x": np.array([-1.0, 0.0, 3.0]), "high": np.array(0.0)}, lambda x, high: torch.clamp(x, max=0), fixed=["high"], skip=[1], name="Clip/max")
around = {"x": np.array([[-1.0, 0.0, 3.0], [6.0, 7.0, 0.5]]), "low": np.array(0.0), "high": np.array(6.0)}
one("Clip", around, lambda x, low, high: torch.clamp(x, low, high), name="Clip/bounds")
one("Clip", {**around, "low": np.array(7.0)}, lambda x, low, high: torch.clamp(x, low, high), name="Clip/crossed")
one(
    "Clip", {"x": around["x"], "high": np.array(0.5)}, lambda x, high: torch.clamp(x, max=high), skip=[1],
    name="Clip/upper bound",
)
one("PRelu", {"x": np.array(NUMBERS), "slope": np.array([0.25])}, F.prelu)
one("PRelu", {"x": np.array([[2.0, -1.0]]), "slope": np.array([0.25])}, F.prelu, up=[INF, 1.0], name="PRelu/masked")

# Functions of several numbers.
pair = {"a": np.array([0.0, 1.0, -2.0, 0.0, 1e-20, 5.0]), "b": np.array([1.0, 1.0, -2.0, 1e-20, 1e10, 0.5])}
one("Add", pair, torch.add)
one("Sub", pair, torch.sub)
one("Mul", pair, torch.mul)
one("Div", pair, torch.div)
one("Div", {"a": np.array([0.0]), "b": np.array([2e-38])}, torch.div, name="Div/tiny", up=[100.0])
one("Sum", pair, torch.add)
one("Mean", pair, lambda a, b: (a + b) / 2)
one("Max", pair, torch.maximum)
one("Min", pair, torch.minimum)
one("Max", {"a": np.array([0.0, 1.0, -2.0]), "b": np.array([1.0, 0.0, -2.0])}, torch.maximum, up=[INF, INF, 1.0], name="Max/masked")
one("Pow", {"a": np.array([0.0, 0.0, 0.0, 1.0, 2.0, 4.0, 1e-20]), "b": np.array([0.0, 1.0, 2.0, 0.0, 3.0, -0.5, 2.0])}, torch.pow)
for exponent in (0.0, 1.0, 2.0, 3.0, 4.0):
    one(
        "Pow", {"a": np.array([0.0, -2.0, 1.0, 3.0]), "b": np.array(exponent)},
        lambda a, b, e=exponent: torch.pow(a, e), fixed=["b"], name=f"Pow/{exponent:.0f}",
    )
one(
    "Where", {"c": ints([1, 0, 1]), "a": np.array([0.0, 1.0, 2.0]), "b": np.array([3.0, 4.0, 5.0])},
    lambda c, a, b: torch.where(c.bool(), a, b), up=[INF, -INF, 1.0], codes={"c": "bool"},
)
one("Mod", {"a": np.array([0.0, 3.5, -3.5]), "b": np.array([2.0, 2.0, 2.0])}, torch.fmod, {"fmod": 1}, fixed=["b"])
# Norms, deviations and distances as exporters write them out.
written = {"x": np.array([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0], [3.0, -4.0, 0.0], [1.0, 0.0, 0.0]]), "axes": ints([1])}
emit(
    "Sqrt/deviation",
    [["ReduceMean", ["x", "axes"], ["m"], {"keepdims": 1}], ["Sub", ["x", "m"], ["d"], {}], ["Mul", ["d", "d"], ["q"], {}],
     ["ReduceMean", ["q", "axes"], ["v"], {"keepdims": 0}], ["Mul", ["v", "n"], ["t"], {}], ["Div", ["t", "less"], ["u"], {}],
     ["Sqrt", ["u"], ["y"], {}]],
    {**written, "n": np.array(3.0), "less": np.array(2.0)}, lambda x, axes, n, less: x.std(1), fixed=["n", "less"],
)
emit(
    "Sqrt/length", [["ReduceSumSquare", ["x", "axes"], ["q"], {"keepdims": 0}], ["Sqrt", ["q"], ["y"], {}]], written,
    lambda x, axes: x.norm(dim=1),
)
emit(
    "Sqrt/distance",
    [["Sub", ["x", "z"], ["d"], {}], ["Pow", ["d", "two"], ["q"], {}], ["ReduceSum", ["q", "axes"], ["s"], {"keepdims": 0}],
     ["Sqrt", ["s"], ["y"], {}]],
    {**written, "z": np.array([2.0, 2.0, 2.0]), "two": np.array(2.0)}, lambda x, axes, z, two: (x - z).norm(dim=1),
    fixed=["z", "two"],
)
emit(
    "Pow/length of three",
    [["Abs", ["x"], ["a"], {}], ["Pow", ["a", "three"], ["q"], {}], ["ReduceSum", ["q", "axes"], ["s"], {"keepdims": 0}],
     ["Pow", ["s", "third"], ["y"], {}]],
    {**written, "three": np.array(3.0), "third": np.array(1 / 3)}, lambda x, axes, three, third: x.norm(p=3, dim=1),
    fixed=["three", "third"],
)
# A pole behind a mask, as in the length of what a Relu let through.
emit(
    "Relu/sqrt", [["Relu", ["x"], ["r"], {}], ["Sqrt", ["r"], ["y"], {}]], {"x": np.array([-1.0, -2.0, 4.0])},
    lambda x: torch.sqrt(F.relu(x)),
)
emit(
    "ReduceL2/normalised",
    [["ReduceL2", ["x", "axes"], ["l"], {"keepdims": 1}], ["Clip", ["l", "least"], ["c"], {}], ["Div", ["x", "c"], ["y"], {}]],
    {"x": np.array([[0.0, 0.0], [3.0, 4.0]]), "axes": ints([1]), "least": np.array(1e-12)},
    lambda x, axes, least: F.normalize(x), fixed=["least"],
)

# Reductions.
rows = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 3.0], [-4.0, 3.0, 0.0], [1e-20, 1e-20, 0.0], [5.0, 5.0, 5.0]])
axis = {"axes": ints([1])}


def reduced(op, function, x=rows, name=None, **more):
    one(op, {"x": x, **axis}, lambda x, axes: function(x), {"keepdims": 0}, name=name, **more)


reduced("ReduceSum", lambda x: x.sum(1))
reduced("ReduceMean", lambda x: x.mean(1))
reduced("ReduceMax", lambda x: x.amax(1))
reduced("ReduceMin", lambda x: x.amin(1))
reduced("ReduceMax", lambda x: x.amax(1), np.array([[-INF, -INF], [-INF, 1.0], [INF, INF]]), name="ReduceMax/infinite")
reduced("ReduceProd", lambda x: x.prod(1))
reduced("ReduceL1", lambda x: x.norm(p=1, dim=1))
reduced("ReduceL2", lambda x: x.norm(dim=1))
reduced("ReduceSumSquare", lambda x: x.square().sum(1))
reduced("ReduceLogSum", lambda x: x.sum(1).log(), np.array([[1.0, 0.0], [2.0, 3.0], [1e-20, 0.0]]))
reduced("ReduceLogSumExp", lambda x: x.logsumexp(1), np.array([[0.0, 0.0], [1000.0, 0.0], [-1000.0, -1000.0], [-INF, 1.0]]))
one("ReduceL2", {"x": np.zeros((2, 3))}, lambda x: x.norm(), {"keepdims": 0}, name="ReduceL2/all")
one("ReduceProd", {"x": np.array([[0.0, 2.0], [3.0, 4.0]])}, lambda x: x.prod(), {"keepdims": 0}, name="ReduceProd/all")
one("CumSum", {"x": rows, "axis": ints(1)}, lambda x, axis: x.cumsum(1))
logits = np.array([[0.0, 0.0, 0.0], [1000.0, 0.0, -1000.0], [-INF, 0.0, 1.0], [88.0, 88.0, 0.0]])
one("Softmax", {"x": logits}, lambda x: x.softmax(-1))
emit(
    "Softmax/rows without a place",
    [["Softmax", ["x"], ["s"], {}], ["IsNaN", ["s"], ["n"], {}], ["Where", ["n", "none", "s"], ["y"], {}]],
    {"x": np.array([[-INF, -INF, -INF], [0.0, -INF, 1.0]]), "none": np.array(0.0)}, lambda x, none: torch._safe_softmax(x, -1),
    fixed=["none"],
)
one("LogSoftmax", {"x": logits[:2]}, lambda x: x.log_softmax(-1))

# Normalisations of what doesn't vary.
flat = np.array([[[1.0, 1.0, 1.0], [0.0, 0.0, 0.0]], [[1.0, 1.0, 1.0], [0.0, 2.0, 4.0]]])
weights = {"scale": np.array([1.5, -0.5]), "bias": np.array([0.25, 0.0])}
one(
    "BatchNormalization",
    {"x": flat, **weights, "mean": np.array([1.0, 0.0]), "variance": np.array([0.0, 1.0])},
    lambda x, scale, bias, mean, variance: F.batch_norm(x, mean, variance, scale, bias, False, 0.1, 1e-5),
    {"epsilon": 1e-5}, fixed=["mean", "variance"],
)
one(
    "BatchNormalization", {"x": flat, **weights, "mean": np.array([1.0, 0.5]), "variance": np.array([0.5, 1.0])},
    lambda x, scale, bias, mean, variance: (x - mean[:, None]) * (scale / torch.sqrt(variance + 1e-5))[:, None] + bias[:, None],
    {"epsilon": 1e-5}, name="BatchNormalization/statistics",
)
for name, x in ("training", flat), ("training/flat", np.ones((3, 2, 4))):
    one(
        "BatchNormalization", {"x": x, **weights, "mean": np.array([1.0, 0.0]), "variance": np.array([0.0, 1.0])},
        lambda x, scale, bias, mean, variance: F.batch_norm(x, mean.clone(), variance.clone(), scale, bias, True, 0.1, 1e-5),
        {"epsilon": 1e-5, "training_mode": 1}, outputs=3, fixed=["mean", "variance"], name=f"BatchNormalization/{name}",
    )
one("InstanceNormalization", {"x": flat, **weights}, lambda x, scale, bias: F.instance_norm(x, None, None, scale, bias), {"epsilon": 1e-5})
one("GroupNormalization", {"x": flat, **weights}, lambda x, scale, bias: F.group_norm(x, 1, scale, bias), {"epsilon": 1e-5, "num_groups": 1})
last = {"scale": np.array([1.0, -0.5, 2.0]), "bias": np.zeros(3)}
one("LayerNormalization", {"x": flat, **last}, lambda x, scale, bias: F.layer_norm(x, [3], scale, bias, 1e-5), {"epsilon": 1e-5})
one("RMSNormalization", {"x": flat, "scale": last["scale"]}, lambda x, scale: F.rms_norm(x, [3], scale, 1e-5), {"epsilon": 1e-5}, opset=23)
one(
    "LpNormalization", {"x": np.array([[3.0, 4.0], [0.0, 2.0], [0.0, 0.0]])},
    lambda x: x * torch.where(x.detach().norm(dim=1, keepdim=True) == 0, torch.zeros((), dtype=x.dtype), 1 / torch.where(
        x.detach().norm(dim=1, keepdim=True) == 0, torch.ones((), dtype=x.dtype), x.norm(dim=1, keepdim=True))),
    {"axis": 1, "p": 2},
)

# Products and pictures.
one("MatMul", {"a": np.zeros((2, 3)), "b": np.ones((3, 2))}, torch.matmul)
one("Gemm", {"a": np.zeros((2, 3)), "b": np.ones((3, 2)), "c": np.zeros(2)}, lambda a, b, c: a @ b + c)
one("Einsum", {"a": np.zeros((2, 3)), "b": np.ones((3, 2))}, torch.matmul, {"equation": "ij,jk->ik"})
one("Conv", {"x": IMAGE, "w": np.zeros((1, 1, 2, 2))}, F.conv2d)
one("ConvTranspose", {"x": IMAGE, "w": np.ones((1, 1, 2, 2))}, F.conv_transpose2d)
one("MaxPool", {"x": IMAGE}, lambda x: F.max_pool2d(x, 2), {"kernel_shape": [2, 2], "strides": [2, 2]})
one("MaxPool", {"x": IMAGE}, lambda x: F.max_pool2d(x, 3, 1, 1), {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}, name="MaxPool/overlapping")
one(
    "MaxPool", {"x": IMAGE}, lambda x: F.max_pool2d(x, 2), {"kernel_shape": [2, 2], "strides": [2, 2]},
    up=[INF, 1.0, 2.0, 3.0], name="MaxPool/masked",
)
one("AveragePool", {"x": IMAGE}, lambda x: F.avg_pool2d(x, 2, 1, 1, count_include_pad=False), {"kernel_shape": [2, 2], "pads": [1, 1, 1, 1]})
one("GlobalAveragePool", {"x": IMAGE}, lambda x: F.adaptive_avg_pool2d(x, 1))
one("GlobalMaxPool", {"x": IMAGE}, lambda x: F.adaptive_max_pool2d(x, 1))


# Lengths of windows, of pictures and of channels around each.
def lengths(x, p, kernel, strides=(1, 1), pads=(0, 0, 0, 0), dilations=(1, 1)):
    x = F.pad(x, (pads[1], pads[3], pads[0], pads[2]))
    rows, columns = [1 + (x.shape[i + 2] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] for i in range(2)]
    seen = F.unfold(x, kernel, dilations, 0, strides).unflatten(1, (x.shape[1], -1))
    return torch.linalg.vector_norm(seen, p, dim=2).unflatten(2, (rows, columns))


SIGNED = np.concatenate([IMAGE - 1, 1 - IMAGE[:, :, ::-1] * 2], 1)
for p in (1, 2, 3):
    one("LpPool", {"x": SIGNED}, lambda x, p=p: lengths(x, p, (2, 2), (2, 2)), {"kernel_shape": [2, 2], "strides": [2, 2], "p": p}, name=f"LpPool/{p}")
    one(
        "LpPool", {"x": SIGNED}, lambda x, p=p: lengths(x, p, (3, 2), (2, 1), (1, 0, 1, 1)),
        {"kernel_shape": [3, 2], "strides": [2, 1], "pads": [1, 0, 1, 1], "p": p}, name=f"LpPool/{p} padded",
    )
    one("GlobalLpPool", {"x": SIGNED}, lambda x, p=p: torch.linalg.vector_norm(x, p, (2, 3), True), {"p": p}, name=f"GlobalLpPool/{p}")
one("LpPool", {"x": SIGNED}, lambda x: lengths(x, 2, (2, 2)), {"kernel_shape": [2, 2]})
one("LpPool", {"x": SIGNED}, lambda x: lengths(x, 3, (2, 3), pads=(0, 1, 1, 1)), {"kernel_shape": [2, 3], "auto_pad": "SAME_UPPER", "p": 3}, name="LpPool/same")
one("LpPool", {"x": SIGNED}, lambda x: lengths(x, 3, (2, 2), dilations=(2, 1)), {"kernel_shape": [2, 2], "dilations": [2, 1], "p": 3}, name="LpPool/dilated")
one(
    "LpPool", {"x": SIGNED}, lambda x: lengths(x, 1, (3, 3), (2, 2), (0, 0, 1, 1)),
    {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1, "p": 1}, name="LpPool/ceiled",
)
one("GlobalLpPool", {"x": np.zeros((1, 2, 2, 2))}, lambda x: torch.linalg.vector_norm(x, 2, (2, 3), True), name="GlobalLpPool/zeros")


def response(x, before, behind, alpha, beta, bias):
    count = before + behind + 1
    around = F.pad(x.square(), (0, 0, 0, 0, before, behind)).unfold(1, count, 1).sum(-1)
    return x / (bias + alpha / count * around) ** beta


CHANNELS = np.concatenate([SIGNED, SIGNED[:, ::-1, ::-1] / 2, np.zeros((1, 1, 4, 4))], 1)
one("LRN", {"x": CHANNELS}, lambda x: F.local_response_norm(x, 3), {"size": 3})
one("LRN", {"x": CHANNELS}, lambda x: response(x, 1, 2, 0.5, 0.5, 2.0), {"size": 4, "alpha": 0.5, "beta": 0.5, "bias": 2.0}, name="LRN/even")
one("LRN", {"x": CHANNELS}, lambda x: F.local_response_norm(x, 7, 0.5), {"size": 7, "alpha": 0.5}, name="LRN/all")


def standard(x, axes):
    return (x - x.mean(axes, True)) / (x.std(axes, unbiased=False, keepdim=True) + 1e-9)


one("MeanVarianceNormalization", {"x": SIGNED}, lambda x: standard(x, (0, 2, 3)))
one("MeanVarianceNormalization", {"x": SIGNED}, lambda x: standard(x, (0, 1, 2, 3)), {"axes": [0, 1, 2, 3]}, name="MeanVarianceNormalization/all")
one("MeanVarianceNormalization", {"x": np.ones((1, 2, 2, 2))}, lambda x: standard(x, (0, 2, 3)), name="MeanVarianceNormalization/flat")

# What moves elements.
m = np.arange(6.0).reshape(2, 3)
one("Reshape", {"x": m, "shape": ints([3, 2])}, lambda x, shape: x.reshape(3, 2))
one("Flatten", {"x": m}, lambda x: x.flatten(1))
one("Squeeze", {"x": m[None], "axes": ints([0])}, lambda x, axes: x.squeeze(0))
one("Unsqueeze", {"x": m, "axes": ints([0])}, lambda x, axes: x.unsqueeze(0))
one("Transpose", {"x": m}, lambda x: x.T)
one("Expand", {"x": m[:, :1], "shape": ints([2, 3])}, lambda x, shape: x.expand(2, 3))
one("Concat", {"a": m, "b": m}, lambda a, b: torch.cat([a, b], 1), {"axis": 1}, up=[INF, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4])
one("Split", {"x": m, "sizes": ints([1, 2])}, lambda x, sizes: x[:, :1], {"axis": 1}, outputs=2)
one("Slice", {"x": m, "starts": ints([1]), "ends": ints([3]), "axes": ints([1])}, lambda x, starts, ends, axes: x[:, 1:3], up=[INF, 1, 1, 2])
one(
    "Slice", {"x": m, "starts": ints([0]), "ends": ints([3]), "axes": ints([1]), "steps": ints([2])},
    lambda x, starts, ends, axes, steps: x[:, ::2], up=[INF, 1, 1, 2], name="Slice/steps",
)
one("Pad", {"x": m, "pads": ints([0, 1, 0, 2])}, lambda x, pads: F.pad(x, (1, 2)))
one(
    "Pad", {"x": m, "pads": ints([0, 1, 0, 2]), "v": np.array(0.5)},
    lambda x, pads, v: torch.cat([v.expand(2, 1), x, v.expand(2, 2)], 1), name="Pad/value",
)
for mode in ("reflect", "edge"):
    one(
        "Pad", {"x": m, "pads": ints([0, 2, 0, 1])},
        lambda x, pads, mode=mode: F.pad(x[None], (2, 1), mode="replicate" if mode == "edge" else mode)[0],
        {"mode": mode}, name=f"Pad/{mode}", up=[1, 2, INF, 4, 5, 6, 1, 2, 3, 4, 5, 6],
    )
one("Pad", {"x": m, "pads": ints([0, 1, 0, 2])}, lambda x, pads: F.pad(x[None], (1, 2), mode="circular")[0], {"mode": "wrap"}, name="Pad/wrap")
one("Tile", {"x": m, "repeats": ints([2, 1])}, lambda x, repeats: x.tile(2, 1))
one("DepthToSpace", {"x": np.arange(16.0).reshape(1, 4, 2, 2)}, lambda x: F.pixel_shuffle(x, 2), {"blocksize": 2, "mode": "CRD"})
one(
    "SpaceToDepth", {"x": IMAGE},
    lambda x: x.reshape(1, 1, 2, 2, 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(1, 4, 2, 2), {"blocksize": 2},
)
one("Trilu", {"x": m}, torch.triu, up=[1, 2, 3, INF, 5, 6])
one(
    "Resize", {"x": IMAGE, "sizes": ints([1, 1, 8, 8])}, lambda x, sizes: F.interpolate(x, scale_factor=2, mode="bilinear"),
    {"mode": "linear"}, skip=[1, 2],
)
one(
    "Resize", {"x": IMAGE, "sizes": ints([1, 1, 8, 8])}, lambda x, sizes: F.interpolate(x, scale_factor=2),
    {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
    skip=[1, 2], up=[INF] + [1.0] * 63, name="Resize/nearest",
)
one("Gather", {"x": m, "at": ints([1, 1, 0])}, lambda x, at: x[:, at], {"axis": 1}, up=[INF, 1, 1, 2, 2, 2])
one("Gather", {"x": m, "at": ints([1, 1])}, lambda x, at: x[at], name="Gather/rows")
one("Gather", {"x": m, "at": ints(-1)}, lambda x, at: x[:, -1], {"axis": 1}, name="Gather/one")
one("GatherElements", {"x": m, "at": ints([[0, 0, 2], [1, 1, 1]])}, lambda x, at: x.gather(1, at), {"axis": 1})
one("GatherND", {"x": m, "at": ints([[0, 0], [0, 0], [1, 2]])}, lambda x, at: x[at[:, 0], at[:, 1]])
one(
    "ScatterND", {"x": m, "at": ints([[1]]), "u": np.ones((1, 3))}, lambda x, at, u: x.index_copy(0, at[0], u),
    up=[1, 2, 3, INF, 5, 6],
)
one(
    "ScatterElements", {"x": m, "at": ints([[0, 1, 2]]), "u": np.ones((1, 3))},
    lambda x, at, u: x.scatter(1, at, u), {"axis": 1}, up=[INF, 2, 3, 4, 5, 6],
)
one("TopK", {"x": np.array([[1.0, 3.0, 2.0]]), "k": ints([2])}, lambda x, k: x.topk(2)[0], outputs=2)


# Recurrent layers whose gates are full.
def gates(x, w, r, h):
    return (x @ w[0].T + h @ r[0].T).chunk(w.shape[1] // r.shape[2], -1)


def lstm(x, w, r):
    h = c = torch.zeros(x.shape[1], r.shape[2], dtype=x.dtype)
    made = []
    for step in x:
        i, o, f, g = gates(step, w, r, h)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        made.append(h)
    return torch.stack(made)[:, None]


def gru(x, w, r):
    h = torch.zeros(x.shape[1], r.shape[2], dtype=x.dtype)
    made = []
    for step in x:
        (zx, rx, nx), (zh, rh, nh) = (step @ w[0].T).chunk(3, -1), (h @ r[0].T).chunk(3, -1)
        z, reset = (zx + zh).sigmoid(), (rx + rh).sigmoid()
        h = (1 - z) * (nx + reset * nh).tanh() + z * h
        made.append(h)
    return torch.stack(made)[:, None]


def rnn(x, w, r):
    h = torch.zeros(x.shape[1], r.shape[2], dtype=x.dtype)
    made = []
    for step in x:
        h = (step @ w[0].T + h @ r[0].T).tanh()
        made.append(h)
    return torch.stack(made)[:, None]


steps = np.array([[[0.0, 0.0]], [[100.0, -100.0]], [[0.5, 1.0]]])
for op, function, count, attributes in [
    ("LSTM", lstm, 4, {}), ("GRU", gru, 3, {"linear_before_reset": 1}), ("RNN", rnn, 1, {}),
]:
    w = (np.arange(count * 4.0).reshape(1, count * 2, 2) - count) / 4
    one(op, {"x": steps, "w": w, "r": w[:, ::-1].copy() / 2}, function, {"hidden_size": 2, **attributes})

# Quantisers: straight through in range, zero outside.
around = np.array([0.0, -12.8, -12.86, 12.7, 12.76, 100.0, -100.0, 0.05])
pair = lambda kind, between=(): [
    ["QuantizeLinear", ["x", "s", "o"], ["q"], {}], *between,
    ["DequantizeLinear", ["q" if not between else "c", "s", "o"], ["y"], {}],
]
emit(
    "QuantizeLinear/uint8", pair("u8"), {"x": around, "s": np.array(0.1), "o": ints(128)},
    lambda x, s, o: torch.fake_quantize_per_tensor_affine(x.float(), 0.1, 128, 0, 255).to(x.dtype), fixed=["s"], codes={"o": "u8"},
)
emit(
    "QuantizeLinear/int8", pair("i8"), {"x": around, "s": np.array(0.1), "o": ints(0)},
    lambda x, s, o: torch.fake_quantize_per_tensor_affine(x.float(), 0.1, 0, -128, 127).to(x.dtype), fixed=["s"], codes={"o": "i8"},
)
emit(
    "QuantizeLinear/seven bits", pair("u8", [["Clip", ["q", "low", "high"], ["c"], {}]]),
    {"x": around, "s": np.array(0.1), "o": ints(64), "low": ints(0), "high": ints(127)},
    lambda x, s, o, low, high: torch.fake_quantize_per_tensor_affine(x.float(), 0.1, 64, 0, 127).to(x.dtype),
    fixed=["s"], codes={"o": "u8", "low": "u8", "high": "u8"},
)
per_axis = np.array([[0.0, 1.0, 20.0], [-0.5, 1.0, 3.0]])
emit(
    "QuantizeLinear/axis", [
        ["QuantizeLinear", ["x", "s", "o"], ["q"], {"axis": 0}], ["DequantizeLinear", ["q", "s", "o"], ["y"], {"axis": 0}],
    ], {"x": per_axis, "s": np.array([0.1, 0.01]), "o": ints([0, 0])},
    lambda x, s, o: torch.fake_quantize_per_channel_affine(
        x.float(), s.float(), o.int(), 0, -128, 127).to(x.dtype), fixed=["s"], codes={"o": "i8"},
)
blocks = np.array([[0.0, 100.0, 0.2, 13.0, 0.1]])
emit(
    "QuantizeLinear/blocks", [
        ["QuantizeLinear", ["x", "s", "o"], ["q"], {"axis": 1, "block_size": 2}],
        ["DequantizeLinear", ["q", "s", "o"], ["y"], {"axis": 1, "block_size": 2}],
    ], {"x": blocks, "s": np.array([[1.0, 0.1, 0.001]]), "o": ints([[0, 0, 0]])},
    lambda x, s, o: torch.fake_quantize_per_channel_affine(
        x.float()[0], s.float()[0].repeat_interleave(2)[:5], torch.zeros(5, dtype=torch.int32), 0, -128, 127)[None].to(x.dtype),
    fixed=["s"], codes={"o": "i8"}, opset=21,
)
emit(
    "DynamicQuantizeLinear", [
        ["DynamicQuantizeLinear", ["x"], ["q", "t", "u"], {}], ["DequantizeLinear", ["q", "t", "u"], ["y"], {}],
    ], {"x": np.array([0.0, -1.0, 3.0, 2.0])}, lambda x: x + 0,
)
