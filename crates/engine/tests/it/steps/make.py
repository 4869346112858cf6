"""Writes the reference suite: small models, and what PyTorch makes of three steps of each.

    python make.py            # all of them, into `models/`
    python make.py lstm       # those whose names hold this

Needs PyTorch, onnx and numpy. A model is written once for each operator set, the oldest and the newest that say the same,
with attributes that have defaults left out; `NAME.steps` holds a GraphProto whose tensors are what goes into each step
(`0/given/x`) and what comes out (`0/made/loss`), and whose text is how the model is trained. `torch_ops.py` has the
operators. Everything is computed in double precision and kept as the model has it.
"""

import json
import math
import pathlib
import sys

import numpy
import onnx
import torch
import torch.nn.functional as F
from onnx import helper, numpy_helper, parser

import torch_ops

FOLDER = pathlib.Path(__file__).parent / "models"
STEPS = 3
SGD = {"kind": "sgd", "momentum": 0.9}
CROSS_ENTROPY = {"kind": "cross-entropy"}
CASES = []
ANY = -1  # as many rows as what is multiplied has columns


def case(name, bodies, weights=None, *, x=(5, 4, 6, 6), y="N,3", classes=3, loss=CROSS_ENTROPY, optimizer=SGD, rate=0.1,
         warmup=0, decay=None, clip=None, target="classes", logits="y", kind="float", integers=None, producer="", copies=None):
    """`bodies`: what is between the braces, by operator set. `weights`: shapes, or arrays; what begins with `k_` is a
    constant of the architecture. `logits`: the tensor that the loss is computed of in PyTorch. `producer`: who is said to
    have written the file. `copies`: what the bodies call a weight that the file has once more, turned; its name there, that of
    the weight, and how it is turned."""
    schedule = {"rate": rate, "warmup": warmup, "decay": decay or {"kind": "constant"}}
    recipe = {"loss": loss, "optimizer": optimizer, "schedule": schedule, "clip": clip}
    CASES.append(dict(name=name, bodies=bodies, weights=weights or {}, x=x, y=y, classes=classes, recipe=recipe,
                      target=target, logits=logits, kind=kind, integers=integers, producer=producer, copies=copies or {}))


def between(**bodies):
    """Bodies with a weight before and behind what makes `o` of `h`."""
    def whole(inner):
        return f"h = Mul(x, gain) {inner} f = Flatten(o) y = MatMul(f, head)"
    texts = {int(opset[1:]): whole(inner) for opset, inner in bodies.items()}
    return texts, {"gain": (4, 1, 1), "head": (ANY, 3)}


def both(inner, old=7, new=23):
    return between(**{f"s{old}": inner, f"s{new}": inner})


def layer(name, made, weights=None, **options):
    bodies, own = made
    case(name, bodies, {**own, **(weights or {})}, **options)


def i64(*values):
    return numpy.array(values, dtype=numpy.int64)


# Convolutions.
layer("conv", both("o = Conv(h, w)"), {"w": (3, 4, 3, 3)})
layer("conv_bias_groups", both("o = Conv<group = 2, strides = [2, 2], pads = [1, 0, 1, 1]>(h, w, b)"),
      {"w": (4, 2, 3, 2), "b": (4,)}, x=(5, 4, 6, 5))
layer("conv_dilated", both("o = Conv<dilations = [2, 2]>(h, w)"), {"w": (3, 4, 3, 3)})
layer("conv_depthwise", both("o = Conv<group = 4>(h, w)"), {"w": (4, 1, 3, 3)})
layer("conv_1d", both("p = Squeeze(h, k_axis) o = Conv(p, w, b)", old=13), {"w": (3, 4, 3), "b": (3,),
      "k_axis": i64(3)}, x=(5, 4, 6, 1))
layer("conv_same", both("o = Conv<auto_pad = \"SAME_UPPER\", strides = [2, 2]>(h, w)"), {"w": (6, 4, 3, 3)},
      x=(5, 4, 4, 4))
layer("conv_transpose", both("o = ConvTranspose(h, w)"), {"w": (4, 3, 3, 3)})
layer("conv_transpose_strided", both("o = ConvTranspose<strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [0, 0]>(h, w, b)"),
      {"w": (4, 3, 3, 3), "b": (3,)})

# Pooling.
layer("max_pool", both("o = MaxPool<kernel_shape = [2, 2]>(h)"))
layer("max_pool_strided", both("o = MaxPool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(h)"))
layer("average_pool", both("o = AveragePool<kernel_shape = [2, 2]>(h)"))
layer("average_pool_padded", both("o = AveragePool<kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]>(h)"))
CEILED = "kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1"
for name, pads in ("dropped", "1, 1, 1, 1"), ("dropped_once", "1, 0, 1, 0"):  # windows that would begin in the padding
    for kind in "MaxPool", "AveragePool":
        layer(f"{kind[:-4].lower()}_pool_{name}", both(f"o = {kind}<{CEILED}, pads = [{pads}]>(h)", 10), x=(5, 4, 5, 5))
layer("lp_pool", both("o = LpPool<kernel_shape = [2, 2]>(h)"))
layer("global_pools", both("a = GlobalAveragePool(h) m = GlobalMaxPool(h) o = Concat<axis = 1>(a, m)"))

# Normalisations.
NORM = {"s": (4,), "b": (4,)}
STATISTICS = {"mean": (4,), "var": numpy.array([0.5, 1.0, 2.0, 1.5], numpy.float32)}
layer("batch_norm", both("o = BatchNormalization(h, s, b, mean, var)"), {**NORM, **STATISTICS})
MOMENTS = "m = ReduceMean<keepdims = 0>(h, k_axes) w = ReduceMean(h, k_axes) c = Sub(h, w) q = Mul(c, c) " \
          "v = ReduceMean<keepdims = 0>(q, k_axes) "
layer("batch_norm_of_the_batch", both(MOMENTS + "o = BatchNormalization(h, s, b, m, v)", old=18), {**NORM, "k_axes": i64(0, 2, 3)})
layer("batch_norm_momentum", both("o = BatchNormalization<momentum = 0.7, epsilon = 0.01>(h, s, b, mean, var)"),
      {**NORM, **STATISTICS}, optimizer={"kind": "adam"}, rate=0.02)
layer("batch_norm_training_mode", between(s14="o, m, v = BatchNormalization<training_mode = 1>(h, s, b, mean, var)",
    s23="o, m, v = BatchNormalization<training_mode = 1>(h, s, b, mean, var)"), {**NORM, **STATISTICS})
case("batch_norm_of_rows", {n: "h = MatMul(x, w) o = BatchNormalization(h, s, b, mean, var) y = MatMul(o, head)"
     for n in (7, 23)}, {"w": (5, 4), **NORM, **STATISTICS, "head": (4, 3)}, x=(6, 5), optimizer={"kind": "adamw"}, rate=0.02)
layer("batch_norm_twice", both("p = BatchNormalization(h, s, b, mean, var) q = Relu(p) o = BatchNormalization(q, s, b, mean, var)"),
      {**NORM, **STATISTICS})
layer("instance_norm", both("o = InstanceNormalization(h, s, b)"), NORM)
layer("group_norm", both("o = GroupNormalization<num_groups = 2>(h, s, b)", old=21), NORM)
layer("layer_norm", both("o = LayerNormalization(h, s, b)", old=17), {"s": (6,), "b": (6,)})
layer("layer_norm_axis", both("o = LayerNormalization<axis = 1>(h, s)", old=17), {"s": (4, 6, 6)})
layer("rms_norm", both("o = RMSNormalization(h, s)", old=23, new=23), {"s": (6,)})
layer("lp_normalization", both("o = LpNormalization(h)"))
layer("lrn", both("o = LRN<size = 3>(h)"))

# Resizing and padding.
NEAREST = "mode = \"nearest\""
layer("upsample", between(s7="o = Upsample<scales = [1.0, 1.0, 2.0, 2.0]>(h)", s9="o = Upsample(h, k_scales)",
    s10="o = Resize(h, k_scales)",
    s11="o = Resize<coordinate_transformation_mode = \"asymmetric\", nearest_mode = \"floor\">(h, k_roi, k_scales)"),
      {"k_scales": numpy.array([1, 1, 2, 2], numpy.float32), "k_roi": numpy.zeros(0, numpy.float32)})
SCALES = {"k_scales": numpy.array([1, 1, 2, 2], numpy.float32), "k_roi": numpy.zeros(0, numpy.float32)}
layer("resize_nearest", both("o = Resize(h, k_roi, k_scales)", old=11), SCALES)
layer("resize_linear", both("o = Resize<mode = \"linear\">(h, k_roi, k_scales)", old=11), SCALES)
layer("resize_cubic", both("o = Resize<mode = \"cubic\">(h, k_roi, k_scales)", old=11), SCALES)
layer("resize_to_sizes", both("o = Resize<mode = \"linear\", axes = [2, 3]>(h, , , k_sizes)", old=18),
      {"k_sizes": i64(8, 5)})
PADS = {"k_pads": i64(0, 0, 1, 0, 0, 0, 2, 1)}
layer("pad", between(s7="o = Pad<pads = [0, 0, 1, 0, 0, 0, 2, 1]>(h)", s11="o = Pad(h, k_pads)",
                     s23="o = Pad(h, k_pads)"), PADS)
for mode in ("reflect", "edge"):
    layer(f"pad_{mode}", between(s7=f"o = Pad<mode = \"{mode}\", pads = [0, 0, 1, 0, 0, 0, 2, 1]>(h)",
                                 s23=f"o = Pad<mode = \"{mode}\">(h, k_pads)"), PADS)
layer("pad_wrap", both("o = Pad<mode = \"wrap\">(h, k_pads)", old=19), PADS)

# Recurrent layers: [batch, steps, inputs], turned.
for kind, gates in (("RNN", 1), ("GRU", 3), ("LSTM", 4)):
    def recurrent(name, attributes, inputs, weights, kind=kind, **more):
        body = f"t = Transpose<perm = [1, 0, 2]>(x) o = {kind}<hidden_size = 3{attributes}>(t, {inputs}) "
        body += "q = Transpose<perm = [2, 0, 1, 3]>(o) f = Flatten(q) y = MatMul(f, head)"
        case(name, {7: body, 23: body}, {**weights, "head": (ANY, 3)}, x=(4, 5, 2), **more)
    W = {"w": (1, 3 * gates, 2), "r": (1, 3 * gates, 3)}
    recurrent(kind.lower(), "", "w, r, b", {**W, "b": (1, 6 * gates)})
    after = ", linear_before_reset = 1" if kind == "GRU" else ""
    if kind != "GRU":
        recurrent(f"{kind.lower()}_without_bias", "", "w, r", W)
    else:
        recurrent("gru_linear_before_reset", after, "w, r, b", {**W, "b": (1, 6 * gates)})
    recurrent(f"{kind.lower()}_both_ways", f", direction = \"bidirectional\"{after}", "w, r, b",
              {"w": (2, 3 * gates, 2), "r": (2, 3 * gates, 3), "b": (2, 6 * gates)})

# Reductions.
KINDS = ["Sum", "Mean", "Max", "Min", "L1", "L2", "LogSumExp", "SumSquare"]
OLD = " ".join(f"r{k} = Reduce{k}<axes = [2, 3]>(h)" for k in KINDS)
NEW = " ".join(f"r{k} = Reduce{k}(h, k_axes)" for k in KINDS)
JOIN = f" o = Concat<axis = 1>({', '.join('r' + k for k in KINDS)})"
layer("reduce", between(s7=OLD + JOIN, s18=NEW + JOIN, s23=NEW + JOIN), {"k_axes": i64(2, 3)})
ALL = " ".join(f"r{k} = Reduce{k}(h)" for k in KINDS)
WHOLE = f" o0 = Sum({', '.join('r' + k for k in KINDS)}) o1 = Tanh(o0) o = Mul(h, o1)"
layer("reduce_all", both(ALL + WHOLE), rate=0.02)
FEW = "a = Abs(h) {} o = Concat<axis = 1>(p, l)"
layer("reduce_product", between(s7=FEW.format("p = ReduceProd<axes = [3]>(h) l = ReduceLogSum<axes = [3]>(a)"),
    s23=FEW.format("p = ReduceProd(h, k_axes) l = ReduceLogSum(a, k_axes)")), {"k_axes": i64(3)})
layer("cumsum", both("o = CumSum(h, k_axis)", old=11), {"k_axis": numpy.array(3, numpy.int64)})

# Products and tables.
case("gemm", {n: "y = Gemm(x, w, b)" for n in (7, 23)}, {"w": (5, 3), "b": (3,)}, x=(4, 5))
case("gemm_turned", {n: "h = Gemm<alpha = 0.5, beta = 2.0, transB = 1>(x, w, b) y = Gemm(h, v)" for n in (11, 23)},
     {"w": (6, 5), "b": (6,), "v": (6, 3)}, x=(4, 5))
case("einsum", {n: "h = Einsum<equation = \"nij,jk->nik\">(x, w) f = Flatten(h) y = MatMul(f, head)" for n in (12, 23)},
     {"w": (5, 4), "head": (12, 3)}, x=(4, 3, 5))
case("embedding", {n: "e = Gather(table, x) f = Flatten(e) y = MatMul(f, head)" for n in (7, 23)},
     {"table": (7, 4), "head": (20, 3)}, x=(4, 5), integers=7)

# Weights computed of weights: their parts are trained.
layer("weight_norm", between(
    s7="l = ReduceL2<axes = [1, 2, 3]>(v) d = Div(v, l) w = Mul(d, g) o = Conv(h, w, b)",
    s23="l = ReduceL2(v, k_axes) d = Div(v, l) w = Mul(d, g) o = Conv(h, w, b)"),
      {"v": (3, 4, 3, 3), "g": (3, 1, 1, 1), "b": (3,), "k_axes": i64(1, 2, 3)})
layer("weight_norm_of_rows", between(
    s7="s = Mul(v, v) t = ReduceSum<axes = [1]>(s) l = Sqrt(t) c = Div(g, l) w = Mul(v, c) u = Transpose(w) i = Flatten(h) "
       "n = MatMul(i, u) o = Tanh(n)",
    s23="s = Mul(v, v) t = ReduceSum(s, k_axes) l = Sqrt(t) c = Div(g, l) w = Mul(v, c) u = Transpose(w) i = Flatten(h) "
        "n = MatMul(i, u) o = Tanh(n)"),
      {"v": (5, 16), "g": (5, 1), "k_axes": i64(1)}, x=(5, 4, 2, 2), optimizer={"kind": "adamw"}, rate=0.02)
layer("weight_standardised", between(
    s7="m = ReduceMean<axes = [1, 2, 3]>(v) c = Sub(v, m) q = Mul(c, c) a = ReduceMean<axes = [1, 2, 3]>(q) e = Add(a, k_small) "
       "d = Sqrt(e) z = Div(c, d) w = Mul(z, g) o = Conv(h, w)",
    s23="m = ReduceMean(v, k_axes) c = Sub(v, m) q = Mul(c, c) a = ReduceMean(q, k_axes) e = Add(a, k_small) "
        "d = Sqrt(e) z = Div(c, d) w = Mul(z, g) o = Conv(h, w)"),
      {"v": (3, 4, 3, 3), "g": (3, 1, 1, 1), "k_axes": i64(1, 2, 3), "k_small": numpy.array(1e-5, numpy.float32)})
SPECTRAL = "t = MatMul(v, k_v) s = MatMul(k_u, t) w = Div(v, s) u = Transpose(w) i = Flatten(h) o = MatMul(i, u)"
layer("spectral_norm", both(SPECTRAL), {"v": (5, 16), "k_u": numpy.linspace(-1, 1, 5, dtype=numpy.float32),
      "k_v": numpy.linspace(-0.5, 1, 16, dtype=numpy.float32)}, x=(5, 4, 2, 2))
LOW_RANK = "i = Flatten(h) p = MatMul(a, b) r = Mul(p, k_share) w = Add(v, r) c = Add(d, e) u = MatMul(i, w) n = Add(u, c) o = Tanh(n)"
layer("low_rank", both(LOW_RANK), {"v": (16, 5), "a": (16, 2), "b": (2, 5), "d": (5,), "e": (5,),
      "k_share": numpy.array(0.5, numpy.float32)}, x=(5, 4, 2, 2))
layer("pruned", both("w = Mul(v, k_mask) a = Sin(k_angles) t = Mul(h, a) o = Conv(t, w)"), {"v": (3, 4, 3, 3),
      "k_mask": (numpy.arange(108) % 3 > 0).reshape(3, 4, 3, 3).astype(numpy.float32),
      "k_angles": numpy.linspace(0.5, 2, 6, dtype=numpy.float32)})
case("learned_numbers", {n: "h = MatMul(x, w) a = Mul(h, alpha) c = Add(a, shift) r = Tanh(c) z = MatMul(r, head) "
     "s = Exp(logit_scale) t = Mul(z, s) y = Div(t, temperature)" for n in (7, 23)},
     {"w": (5, 6), "head": (6, 3), "alpha": numpy.array([0.8]), "logit_scale": numpy.array(0.3), "temperature": numpy.array(1.7),
      "shift": numpy.array([-0.2])}, x=(6, 5), producer="pytorch", optimizer={"kind": "adam"}, rate=0.02)
POWERS = "t = Tanh(x) h = Mul(t, gain) low = Constant<value = float {0.000001}>() c = Clip(h, low) q = Pow(c, p) a = GlobalAveragePool(q) i = Reciprocal(p) o = Pow(a, i) " \
         "f = Flatten(o) y = MatMul(f, head)"
case("mean_of_powers", {11: POWERS, 23: POWERS}, {"gain": (4, 1, 1), "p": numpy.array([3.0]), "head": (ANY, 3)},
     producer="pytorch")
case("double_weight_norm", {n: "l = ReduceL2<axes = [0]>(v) d = Div(g, l) w = Mul(v, d) h = MatMul(x, w) r = Tanh(h) "
     "y = MatMul(r, head)" for n in (7, 17)}, {"v": (5, 6), "g": (1, 6), "head": (6, 3)}, x=(6, 5), kind="double",
     optimizer={"kind": "adam"}, rate=0.02)

# What a module of PyTorch has stands for weights where others have constants.
OWN = {n: "h = MatMul(x, w) a = Clip(h, low, high) b = Unsqueeze<axes = [1]>(a) d = Sub(b, centres) e = Mul(d, d) "
       "f = ReduceSum<axes = [2], keepdims = 0>(e) y = Neg(f)" for n in (11, 12)}
case("centres_and_bounds", OWN, {"w": (5, 4), "low": numpy.array(-0.4), "high": numpy.array(0.7), "centres": (3, 4)}, x=(6, 5),
     producer="pytorch")
FIRST = "t = Transpose<perm = [1, 0, 2]>(x) o = {}<hidden_size = 3>(t, w, r, b, , first{}) q = Transpose<perm = [2, 0, 1, 3]>(o) " \
        "f = Flatten(q) y = MatMul(f, head)"
for kind, gates, more in (("RNN", 1, ""), ("GRU", 3, ""), ("LSTM", 4, ", cell")):
    own = {"cell": (1, 4, 3)} if more else {}
    case(f"{kind.lower()}_first_state", {n: FIRST.format(kind, more) for n in (7, 23)}, {"w": (1, 3 * gates, 2), "r": (1, 3 * gates, 3),
         "b": (1, 6 * gates), "first": (1, 4, 3), **own, "head": (ANY, 3)}, x=(4, 5, 2), producer="pytorch")
case("tied_embedding", {n: "e = Gather(table, x) h = MatMul(e, w) r = Tanh(h) z = MatMul(r, copied) y = Transpose<perm = [0, 2, 1]>(z)"
     for n in (7, 23)}, {"table": (7, 4), "w": (4, 4)}, x=(4, 5), integers=7, y="N,7,5", classes=7, producer="pytorch",
     copies={"copied": ("onnx::MatMul_9", "table", (1, 0))})
case("normalised_rows", {n: "h = MatMul(x, w) r = Tanh(h) least = Constant<value = float {1e-12}>() c = Clip(length, least) "
     "d = Div(v, c) t = Transpose(d) y = MatMul(r, t)" for n in (11, 17)}, {"w": (5, 4), "v": (3, 4)}, x=(6, 5), producer="pytorch",
     copies={"length": ("onnx::Clip_9", "v", None)})
layer("attention", both("a = Squeeze(h, k_axis) t = Transpose<perm = [0, 2, 1]>(a) p = MatMul(a, t) q = Add(p, k_mask) s = Softmax(q) "
      "n = IsNaN(s) c = Where(n, k_none, s) o = MatMul(c, a)", old=13), {"k_axis": i64(3), "k_none": numpy.zeros(1, numpy.float32),
      "k_mask": numpy.log(numpy.array([[1, 0, 0, 1], [0, 0, 0, 0], [1, 1, 0, 0], [0, 1, 0, 1]], numpy.float32))}, x=(5, 4, 3, 1))

# Activations and arithmetic.
CURVES = "a = Relu(h) b = LeakyRelu(h) c = Elu(h) d = Selu(h) e = HardSigmoid(h) g = Softplus(h) i = Softsign(h) " \
         "j = Sigmoid(h) l = Tanh(h) m = PRelu(h, slope) n = Exp(h) p = Abs(h) "
CLIPPED = "o = Concat<axis = 1>(a, b, c, d, e, g, i, j, l, m, n, p, q)"
layer("activations", between(s7=CURVES + "q = Clip<min = -0.5, max = 0.5>(h) " + CLIPPED, s11=CURVES + "q = Clip(h, k_low, k_high) " + CLIPPED,
    s23=CURVES + "q = Clip(h, k_low, k_high) " + CLIPPED),
      {"slope": (4, 1, 1), "k_low": numpy.array(-0.5, numpy.float32), "k_high": numpy.array(0.5, numpy.float32)}, x=(4, 4, 2, 2))
layer("newer_activations", both("a = Gelu(h) b = HardSwish(h) c = Mish(h) d = Celu(h) e = Gelu<approximate = \"tanh\">(h) "
    "o = Concat<axis = 1>(a, b, c, d, e)", old=20), x=(4, 4, 2, 2))
layer("thresholded_relu", both("o = ThresholdedRelu<alpha = 0.3>(h)", old=10), x=(4, 4, 2, 2))
layer("arithmetic", both("a = Div(h, k_scale) p = Softplus(h) b = Sqrt(p) c = Pow(p, k_two) d = Log(p) e = Sub(a, b) g = Neg(e) "
    "m = Max(g, c) n = Min(m, d) q = Sin(h) r = Reciprocal(p) t = Mean(q, r) o = Concat<axis = 1>(n, c, t, b)", old=13),
      {"k_scale": numpy.array([[[0.7]], [[1.3]], [[-0.9]], [[2.0]]], numpy.float32), "k_two": numpy.array(2, numpy.float32)},
      x=(4, 4, 2, 2))
layer("softmax_joined", both("o = Softmax(h)", old=7, new=12), x=(4, 4, 2, 2))
layer("softmax", both("o = Softmax(h)", old=13), x=(4, 4, 2, 2))
layer("log_softmax", both("o = LogSoftmax<axis = 1>(h)", old=13), x=(4, 4, 2, 2))

# Moves.
TURN = "t = Transpose(h) u = Transpose<perm = [3, 2, 1, 0]>(t) "
layer("moves", between(s7=TURN + "a, b = Split<axis = 2>(u) c = Slice<starts = [1], ends = [3], axes = [3]>(a) e = Unsqueeze<axes = [1]>(c) "
    "g = Squeeze<axes = [1]>(e) i = Reshape(g, k_shape) j = Flatten(b) o = Concat<axis = 1>(i, j, j)",
    s13=TURN + "a, b = Split<axis = 2>(u) c = Slice(a, k_start, k_end, k_last) e = Unsqueeze(c, k_one) "
    "g = Squeeze(e, k_one) i = Reshape(g, k_shape) j = Flatten(b) o = Concat<axis = 1>(i, j, j)",
    s23=TURN + "a, b = Split<axis = 2, num_outputs = 2>(u) c = Slice(a, k_start, k_end, k_last) e = Unsqueeze(c, k_one) "
    "g = Squeeze(e, k_one) i = Reshape(g, k_shape) j = Flatten(b) o = Concat<axis = 1>(i, j, j)"),
      {"k_shape": i64(0, -1), "k_start": i64(1), "k_end": i64(3), "k_last": i64(3), "k_one": i64(1)}, x=(5, 4, 4, 6))
layer("depth_to_space", both("o = DepthToSpace<blocksize = 2>(h)"))

# Losses.
LINEAR = {"w": (5, 4)}
WEIGHTS = [0.5, 1.0, 2.0, 1.5]


def of_loss(name, loss, *, body="y = MatMul(x, w)", weights=LINEAR, sets=(7, 23), y="N,4", x=(8, 5), **options):
    case(name, {n: body for n in sets}, weights, x=x, y=y, classes=4, loss=loss, rate=0.3, **options)


of_loss("loss_classes", {"kind": "cross-entropy", "smoothing": 0.2, "weights": WEIGHTS}, target="ignored")
of_loss("loss_left_out", CROSS_ENTROPY, target="ignored")
of_loss("loss_of_places", {"kind": "cross-entropy", "smoothing": 0.1, "weights": WEIGHTS}, body="y = Conv(x, w)",
        weights={"w": (4, 3, 2, 2)}, x=(3, 3, 5, 4), y="N,4,4,3", target="ignored")
of_loss("loss_probabilities", {"kind": "cross-entropy", "targets": "probabilities", "smoothing": 0.1, "weights": WEIGHTS},
        target="probabilities")
of_loss("loss_mse", {"kind": "mse"}, target="values")
of_loss("loss_mse_of_one", {"kind": "mse"}, target="values", weights={"w": (5, 1)}, y="N,1")
of_loss("loss_bce", {"kind": "bce"}, target="shares")
of_loss("loss_kl", {"kind": "kl", "temperature": 2.0}, target="values")
of_loss("loss_behind_softmax", CROSS_ENTROPY, logits="z", weights={**LINEAR, "k_shape": i64(-1, 4), "k_axis": i64(1)},
        body="z = MatMul(x, w) p = Softmax<axis = 1>(z) u = Unsqueeze(p, k_axis) c = Cast<to = 1>(u) i = Identity(c) "
        "y = Reshape(i, k_shape)", sets=(13, 23))
of_loss("loss_behind_old_softmax", CROSS_ENTROPY, logits="z", body="z = MatMul(x, w) p = Softmax(z) y = Identity(p)", sets=(7, 12))
of_loss("loss_behind_sigmoid", {"kind": "bce"}, logits="l", target="shares", weights={"w": (5, 1), "k_shape": i64(-1)},
        body="z = MatMul(x, w) p = Sigmoid(z) y = Reshape(p, k_shape) l = Reshape(z, k_shape)", y="N")
of_loss("loss_softmax_over_places", CROSS_ENTROPY, body="z = Conv(x, w) y = Softmax<axis = 2>(z)", sets=(13, 23),
        weights={"w": (4, 3, 2, 2)}, x=(3, 3, 5, 4), y="N,4,4,3")

# Optimisers, bounds and schedules.
DEEP = {n: "h = MatMul(x, w) a = Add(h, b) r = Tanh(a) y = MatMul(r, head)" for n in (7, 23)}
MLP = {"w": (5, 6), "b": (6,), "head": (6, 3)}


def of_optimizer(name, optimizer, **options):
    case(name, DEEP, MLP, x=(6, 5), optimizer=optimizer, **options)


of_optimizer("sgd", {"kind": "sgd"})
of_optimizer("sgd_nesterov", {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}, clip={"value": 0.05})
of_optimizer("adam", {"kind": "adam", "weight_decay": 0.01}, clip={"norm": 0.1}, rate=0.02)
of_optimizer("adamw", {"kind": "adamw", "weight_decay": 0.1, "beta1": 0.8, "beta2": 0.9}, rate=0.02, warmup=1,
             decay={"kind": "cosine", "steps": 4, "last": 0.001})
of_optimizer("schedule_step", {"kind": "sgd"}, decay={"kind": "step", "every": 2, "factor": 0.5})
of_optimizer("schedule_exponential", {"kind": "sgd"}, decay={"kind": "exponential", "factor": 0.9})
of_optimizer("schedule_linear", {"kind": "sgd"}, decay={"kind": "linear", "steps": 3, "last": 0.01})

# Double precision.
DOUBLE = {**MLP, "s": (6,), "mean": (6,), "var": numpy.linspace(0.5, 2, 6)}
NORMED = {n: "h = MatMul(x, w) n = BatchNormalization(h, s, b, mean, var) r = Tanh(n) y = MatMul(r, head)" for n in (7, 23)}
for end, optimizer, more in (
    ("sgd", {"kind": "sgd", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
     dict(clip={"value": 0.05}, decay={"kind": "cosine", "steps": 4})),
    ("adam", {"kind": "adam", "weight_decay": 0.01},
     dict(clip={"norm": 0.1}, warmup=2, decay={"kind": "linear", "steps": 5})),
    ("adamw", {"kind": "adamw", "weight_decay": 0.1}, dict(decay={"kind": "exponential", "factor": 0.9})),
):
    case(f"double_{end}", NORMED, DOUBLE, x=(6, 5), kind="double", rate=0.02, optimizer=optimizer, target="ignored",
         loss={"kind": "cross-entropy", "smoothing": 0.1, "weights": [0.5, 1.0, 2.0]}, **more)
for name, loss, target in (("mse", {"kind": "mse"}, "values"), ("bce", {"kind": "bce"}, "shares"),
                           ("kl", {"kind": "kl", "temperature": 3.0}, "values"),
                           ("probabilities", {"kind": "cross-entropy", "targets": "probabilities"}, "probabilities")):
    case(f"double_{name}", DEEP, MLP, x=(6, 5), kind="double", loss=loss, target=target)


def rate_at(schedule, step):
    rate, decay, since = schedule["rate"], schedule["decay"], max(step - schedule["warmup"], 0)
    last = decay.get("last", 0.0)
    share = min(since / max(decay.get("steps", 1) - schedule["warmup"], 1), 1)
    now = {
        "constant": lambda: rate, "step": lambda: rate * decay["factor"] ** (since // decay["every"]),
        "exponential": lambda: rate * decay["factor"] ** since, "linear": lambda: rate + (last - rate) * share,
        "cosine": lambda: last + (rate - last) * (1 + math.cos(math.pi * share)) / 2,
    }[decay["kind"]]()
    return now * min((step + 1) / (schedule["warmup"] + 1), 1)


def loss_of(loss, logits, target):
    kind = loss["kind"]
    if kind == "mse":
        return F.mse_loss(logits, target)
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, target)
    if kind == "kl":
        t = loss["temperature"]
        return F.kl_div(F.log_softmax(logits / t, 1), F.log_softmax(target / t, 1), reduction="batchmean",
                        log_target=True) * t * t
    weights = torch.tensor(loss["weights"]).double() if loss.get("weights") else None
    return F.cross_entropy(logits, target, weights, label_smoothing=loss.get("smoothing", 0.0))


def optimizer_of(settings, parameters, rate):
    decay = settings.get("weight_decay", 0.0)
    if settings["kind"] == "sgd":
        return torch.optim.SGD(parameters, rate, settings.get("momentum", 0.0), weight_decay=decay,
                               nesterov=settings.get("nesterov", False))
    betas = (settings.get("beta1", 0.9), settings.get("beta2", 0.999))
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings["kind"]]
    return kind(parameters, rate, betas, settings.get("epsilon", 1e-8), decay)


def target_for(case, logits, random):
    shape = list(logits.shape)
    if case["target"] in ("classes", "ignored"):
        target = random.integers(0, case["classes"], [shape[0], *shape[2:]])
        if case["target"] == "ignored":
            target.flat[::3] = -100
        return target
    drawn = random.standard_normal(shape)
    if case["target"] == "shares":
        drawn = 1 / (1 + numpy.exp(-drawn))
    if case["target"] == "probabilities":
        drawn = numpy.exp(drawn) / numpy.exp(drawn).sum(1, keepdims=True)
    return drawn.astype(numpy.float64 if case["kind"] == "double" else numpy.float32)


def initialisers(case, random, columns=1):
    own = numpy.float64 if case["kind"] == "double" else numpy.float32
    made = {}
    for name, value in case["weights"].items():
        if isinstance(value, numpy.ndarray):
            made[name] = value.astype(own) if value.dtype.kind == "f" and not name.startswith("k_") else value
        else:
            value = [columns if n == ANY else n for n in value]
            drawn = random.standard_normal(value) * 0.6
            made[name] = (drawn + 1 if name in ("gain", "s") else drawn).astype(own)
    return made


def copied(case, weights):
    """What the file has of weights once more: turned, or their rows' lengths."""
    copies = case["copies"].values()
    return {name: weights[of].permute(order) if order else weights[of].norm(dim=1, keepdim=True) for name, of, order in copies}


def width(case, model, weights):
    """Columns of what is multiplied by a weight of any rows."""
    head = next((name for name, shape in case["weights"].items() if isinstance(shape, tuple) and ANY in shape), None)
    before = onnx.ModelProto()
    before.CopyFrom(model)
    last = next((i for i, node in enumerate(model.graph.node) if head in node.input), None)
    if last is None:
        return 1
    del before.graph.node[last:]
    given = {n: torch.from_numpy(v.copy()) for n, v in weights.items()}
    given = {n: v.double() if v.is_floating_point() else v for n, v in given.items()}
    x = torch.zeros(case["x"], dtype=torch.int64 if case["integers"] else torch.float64)
    given.update(copied(case, given))
    values = torch_ops.run(before, {"x": x, **given}, {n: given[n] for n in ("mean", "var") if n in given})
    return values[model.graph.node[last].input[0]].shape[-1]


def write(case):
    random = numpy.random.default_rng(sum(case["name"].encode()))
    weights = initialisers(case, random)
    own = numpy.float64 if case["kind"] == "double" else numpy.float32
    columns = None
    x_dims = ",".join(["N", *map(str, case["x"][1:])])
    made = []
    for opset, body in case["bodies"].items():
        x_kind = "int64" if case["integers"] else case["kind"]
        ir = 8 if opset < 20 else 10
        model = parser.parse_model(
            f'<ir_version: {ir}, opset_import: ["" : {opset}]> {case["name"]} ({x_kind}[{x_dims}] x) => '
            f'({case["kind"]}[{case["y"]}] y) {{ {body} }}')
        for inner, (name, *_) in case["copies"].items():
            for node in model.graph.node:
                node.input[:] = [name if i == inner else i for i in node.input]
        if columns is None:
            columns = width(case, model, weights)
            weights = initialisers(case, random, columns)
        read = {name for node in model.graph.node for name in node.input}
        model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in weights.items() if n in read)
        copies = copied(case, {n: torch.from_numpy(v) for n, v in weights.items()})
        model.graph.initializer.extend(numpy_helper.from_array(v.numpy().copy(), n) for n, v in copies.items())
        model.producer_name = case["producer"]
        onnx.checker.check_model(model)
        onnx.save(model, FOLDER / f"{case['name']}-{opset}.onnx")
        made.append(model)
    graphs = [steps(case, model, weights, own, numpy.random.default_rng(7)) for model in made]
    for other in graphs[1:]:
        for a, b in zip(graphs[0], other, strict=True):
            assert a[0] == b[0] and numpy.allclose(a[1], b[1], rtol=1e-6, atol=1e-9), f"{case['name']}: {a[0]}"
    tensors = [numpy_helper.from_array(numpy.asarray(value), name) for name, value in graphs[-1]]
    graph = helper.make_graph([], case["name"], [], [], tensors, doc_string=json.dumps(case["recipe"]))
    (FOLDER / f"{case['name']}.steps").write_bytes(graph.SerializeToString())


def steps(case, model, weights, own, random):
    """What goes into each step and what comes out, by name."""
    recipe, kept = case["recipe"], []
    statistics = {name: torch.from_numpy(weights[name].copy()).double() for name in ("mean", "var") if name in weights}
    constants = {n: torch.from_numpy(v.copy()) for n, v in weights.items() if n.startswith("k_")}
    constants = {n: v.double() if v.is_floating_point() else v for n, v in constants.items()}
    parameters = {n: torch.from_numpy(v.copy()).double().requires_grad_() for n, v in weights.items()
                  if n not in statistics and n not in constants}
    optimizer = optimizer_of(recipe["optimizer"], list(parameters.values()), recipe["schedule"]["rate"])
    for step in range(STEPS):
        x = random.integers(0, case["integers"], case["x"]) if case["integers"] else random.standard_normal(
            case["x"]).astype(own)
        x_torch = torch.from_numpy(x)
        x_torch = x_torch.double() if x_torch.is_floating_point() else x_torch
        given = {"x": x_torch, **parameters, **constants, **statistics, **copied(case, parameters)}
        values = torch_ops.run(model, given, statistics)
        logits = values[case["logits"]]
        target = target_for(case, logits.detach().numpy(), random)
        given = torch.from_numpy(target)
        given = given.double() if given.is_floating_point() else given
        loss = loss_of(recipe["loss"], logits, given)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.sqrt(sum(p.grad.square().sum() for p in parameters.values()))
        if recipe["clip"] and "norm" in recipe["clip"]:
            torch.nn.utils.clip_grad_norm_(parameters.values(), recipe["clip"]["norm"])
        elif recipe["clip"]:
            torch.nn.utils.clip_grad_value_(parameters.values(), recipe["clip"]["value"])
        rate = rate_at(recipe["schedule"], step)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        out = {"loss": loss, "learning_rate": rate, "gradient_norm": norm, "step": numpy.int64(step + 1)}
        if target.dtype == numpy.int64:
            out["correct"] = (logits.argmax(1) == given).sum()
            out["counted"] = (given != -100).sum()
        out.update(parameters)
        out.update(statistics)
        names = {"momentum_buffer": "momentum", "exp_avg": "mean", "exp_avg_sq": "square"}
        for name, parameter in parameters.items():
            for theirs, ours in names.items():
                if optimizer.state[parameter].get(theirs) is not None:
                    out[f"{name}.{ours}"] = optimizer.state[parameter][theirs]
        kept += [(f"{step}/given/x", x), (f"{step}/given/target", target)]
        for name, value in sorted(out.items()):
            value = value.detach().numpy().copy() if isinstance(value, torch.Tensor) else numpy.asarray(value)
            kept.append((f"{step}/made/{name}", value.astype(own) if value.dtype.kind == "f" else value))
    return kept


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    for each in CASES:
        if wanted in each["name"]:
            write(each)
            print(each["name"])
