"""Holds gradients against finite differences, in double precision.

Reads cases as JSON lines: {"name", "forward", "backward", "upstream",
"gradients", "data"}; for each writes a line {"name", "slope", "engine"}: how
far, relatively, the gradient's slope along a random direction is from the
difference quotient, both computed by the ONNX project's reference
implementation, and how far the engine's f32 gradients are from the reference
in f64; or {"name", "error"}.
"""

import json
import os
import sys
import zlib

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_pad, op_scan

SINGLE, DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE


def doubled(graph):
    """Makes every single-precision value of a graph one of double precision."""
    for value in [*graph.input, *graph.output, *graph.value_info]:
        if value.type.tensor_type.elem_type == SINGLE:
            value.type.tensor_type.elem_type = DOUBLE
    for tensor in graph.initializer:
        double_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                doubled(attribute.g)
            elif attribute.type == onnx.AttributeProto.TENSOR:
                double_tensor(attribute.t)
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i == SINGLE:
                attribute.i = DOUBLE


def double_tensor(tensor):
    if tensor.data_type == SINGLE:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


class Double:
    """A model computed in double precision: by the engine where it has the
    kernels, else by the reference implementation."""

    def __init__(self, path):
        model = onnx.load(path)
        doubled(model.graph)
        self.names = [o.name for o in model.graph.output]
        own = [Scan, Pad, Conv, ConvTranspose, Mean, GlobalMaxPool, MeanVarianceNormalization]
        self.reference = ReferenceEvaluator(model, new_ops=own)
        try:
            self.engine = session(model.SerializeToString())
        except Exception:
            self.engine = None

    def run(self, feed):
        feed = {name: np.asarray(value) for name, value in feed.items()}
        if self.engine:
            try:
                return dict(zip(self.names, self.engine.run(None, feed)))
            except Exception:
                self.engine = None
        return dict(zip(self.names, self.reference.run(None, feed)))


class Scan(op_scan.Scan):
    """The reference's own runs forwards only."""

    def __init__(self, node, run_params):
        kept = onnx.NodeProto()
        kept.CopyFrom(node)
        del kept.attribute[:]
        ways = {}
        for attribute in node.attribute:
            if attribute.name.endswith("_directions"):
                ways[attribute.name] = list(attribute.ints)
            else:
                kept.attribute.append(attribute)
        super().__init__(kept, run_params)
        self.ways = ways

    def _run(self, *args, **kwargs):
        args = list(args)
        states = len(args) - self.num_scan_inputs
        for i, backwards in enumerate(self.ways.get("scan_input_directions", [])):
            if backwards:
                args[states + i] = np.flip(args[states + i], 0)
        made = list(super()._run(*args, **kwargs))
        for i, backwards in enumerate(self.ways.get("scan_output_directions", [])):
            if backwards:
                made[states + i] = np.flip(made[states + i], 0)
        return tuple(made)


def around(x, kernel_shape, strides, dilations, pads, auto_pad):
    """The window's settings with their defaults, and pads per axis."""
    n = len(kernel_shape)
    strides, dilations = strides or [1] * n, dilations or [1] * n
    reach = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations)]
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        pads = [[], []]
        for size, stride, length in zip(x.shape[2:], strides, reach):
            total = max((-(-size // stride) - 1) * stride + length - size, 0)
            less = total // 2
            low = less if auto_pad == "SAME_UPPER" else total - less
            pads[0].append(low)
            pads[1].append(total - low)
    else:
        pads = [list(pads[:n]), list(pads[n:])] if pads else [[0] * n, [0] * n]
    return strides, dilations, reach, pads


class Conv(OpRun):
    """The reference's own mixes up groups when there are several examples."""

    def _run(self, x, w, b=None, auto_pad=None, dilations=None, group=1, kernel_shape=None, pads=None, strides=None):
        kernel = list(w.shape[2:])
        strides, dilations, reach, (low, high) = around(x, kernel, strides, dilations, pads, auto_pad)
        x = np.pad(x, [(0, 0), (0, 0), *zip(low, high)])
        sizes = [(s - r) // stride + 1 for s, r, stride in zip(x.shape[2:], reach, strides)]
        y = np.zeros((x.shape[0], w.shape[0], *sizes), x.dtype)
        part, out = w.shape[1], w.shape[0] // group
        for place in np.ndindex(*kernel):
            starts = [p * d for p, d in zip(place, dilations)]
            window = tuple(slice(a, a + (n - 1) * s + 1, s) for a, n, s in zip(starts, sizes, strides))
            for g in range(group):
                seen = x[(slice(None), slice(g * part, (g + 1) * part), *window)]
                weight = w[(slice(g * out, (g + 1) * out), slice(None), *place)]
                y[:, g * out : (g + 1) * out] += np.einsum("nc...,oc->no...", seen, weight)
        if b is not None:
            y += b.reshape(1, -1, *[1] * len(kernel))
        return (y,)


class ConvTranspose(OpRun):
    """As for Conv."""

    def _run(
        self, x, w, b=None, auto_pad=None, dilations=None, group=1, kernel_shape=None, output_padding=None,
        output_shape=None, pads=None, strides=None,
    ):
        kernel = list(w.shape[2:])
        n = len(kernel)
        strides, dilations, reach, (low, high) = around(x, kernel, strides, dilations, pads, None)
        extra = output_padding or [0] * n
        full = [(s - 1) * st + r + e for s, st, r, e in zip(x.shape[2:], strides, reach, extra)]
        if output_shape or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            wanted = output_shape or [s * st for s, st in zip(x.shape[2:], strides)]
            full = [max(f, o) for f, o in zip(full, wanted)]
            total = [f - o for f, o in zip(full, wanted)]
            low = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in total]
            high = [t - a for t, a in zip(total, low)]
        y = np.zeros((x.shape[0], w.shape[1] * group, *full), x.dtype)
        part, out = x.shape[1] // group, w.shape[1]
        for place in np.ndindex(*kernel):
            starts = [p * d for p, d in zip(place, dilations)]
            window = tuple(slice(a, a + (s - 1) * st + 1, st) for a, s, st in zip(starts, x.shape[2:], strides))
            for g in range(group):
                weight = w[(slice(g * part, (g + 1) * part), slice(None), *place)]
                made = np.einsum("nc...,co->no...", x[:, g * part : (g + 1) * part], weight)
                y[(slice(None), slice(g * out, (g + 1) * out), *window)] += made
        y = y[(slice(None), slice(None), *[slice(a, f - h) for a, f, h in zip(low, full, high)])]
        return (y if b is None else y + b.reshape(1, -1, *[1] * n),)


class Mean(OpRun):
    """The reference's own doesn't broadcast."""

    def _run(self, *inputs):
        return (sum(inputs) / len(inputs),)


class MeanVarianceNormalization(OpRun):
    """The reference's own knows single precision only."""

    def _run(self, x, axes=None):
        axes = tuple([0, 2, 3] if axes is None else axes)
        return ((x - x.mean(axis=axes, keepdims=True)) / (x.std(axis=axes, keepdims=True) + 1e-9),)


class GlobalMaxPool(OpRun):
    """The reference's own knows two axes only."""

    def _run(self, x):
        return (np.max(x, axis=tuple(range(2, x.ndim)), keepdims=True),)


class Pad(op_pad.Pad_18):
    """The reference's own refuses negative pads, which the specification allows."""

    def _run(self, data, pads, constant_value=None, axes=None, mode=None):
        axes = list(range(data.ndim)) if axes is None else list(axes)
        before, behind = np.split(np.asarray(pads), 2)
        cut = [slice(None)] * data.ndim
        for axis, low, high in zip(axes, before, behind):
            cut[axis] = slice(max(-low, 0), data.shape[axis] - max(-high, 0))
        rest = np.maximum(pads, 0)
        return super()._run(data[tuple(cut)], rest, constant_value, np.asarray(axes), mode=mode)


def session(model):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def inputs(case, model, rng):
    """The case's own data, or random numbers of the inputs' shapes."""
    given = [v for v in model.graph.input if v.name not in {t.name for t in model.graph.initializer}]
    if case.get("data"):
        whole = onnx.load(os.path.join(os.path.dirname(case["data"]), "model.onnx"))
        place = {v.name: i for i, v in enumerate(whole.graph.input)}
        files = {v.name: os.path.join(case["data"], f"input_{place[v.name]}.pb") for v in given}
        return {name: numpy_helper.to_array(onnx.load_tensor(file)) for name, file in files.items()}
    sizes = {"": 3, "batch": 3, "time": 4, "height": 7, "width": 6}
    values = {}
    for value in given:
        kind = value.type.tensor_type
        shape = [d.dim_value if d.HasField("dim_value") else sizes[d.dim_param] for d in kind.shape.dim]
        if kind.elem_type == TensorProto.INT64:
            values[value.name] = rng.integers(0, 2, shape)
        elif kind.elem_type == TensorProto.BOOL:
            values[value.name] = rng.random(shape) < 0.5
        else:
            # Away from zero, where many functions have a kink.
            values[value.name] = (rng.uniform(0.2, 1.5, shape) * rng.choice([-1.0, 1.0], shape)).astype(np.float32)
    return values


def check(case, jitter):
    rng = np.random.default_rng(zlib.crc32(case["name"].encode()))
    model = onnx.load(case["forward"])
    single = inputs(case, model, rng)
    wanted = [tensor for tensor, _ in case["gradients"]]
    if jitter:
        # Off kinks and ties, of which the project's examples are full.
        for name in wanted:
            x = single[name]
            single[name] = x + (rng.uniform(0.01, 0.03, x.shape) * rng.choice([-1.0, 1.0], x.shape)).astype(x.dtype)
    double = {k: v.astype(np.float64) if v.dtype == np.float32 else v for k, v in single.items()}
    forward, backward = Double(case["forward"]), Double(case["backward"])
    seen = [tensor for tensor, _ in case["upstream"]]

    def run(feed):
        values = forward.run(feed)
        return [np.asarray(values[tensor], np.float64) for tensor in seen]

    outputs = run(double)
    upstream = {g: rng.standard_normal(y.shape) for (_, g), y in zip(case["upstream"], outputs)}
    found = backward.run({**double, **upstream})
    gradients = [np.asarray(found[g]) for _, g in case["gradients"]]
    for tensor, gradient in zip(wanted, gradients):
        if gradient.shape != double[tensor].shape:
            return {"error": f"the gradient of {tensor} has shape {gradient.shape}, not {double[tensor].shape}"}

    slope = 0.0
    for tensor, gradient in zip(wanted, gradients):
        direction = rng.standard_normal(double[tensor].shape)

        def distance(step):
            def along(sign):
                moved = run({**double, tensor: double[tensor] + sign * step * direction})
                return sum(float(np.sum(y * u)) for y, u in zip(moved, upstream.values()))

            quotient = (along(1) - along(-1)) / (2 * step)
            product = float(np.sum(gradient * direction))
            scale = max(abs(quotient), abs(product), float(np.sqrt(np.sum(gradient**2))), 1e-3)
            return abs(quotient - product) / scale

        # Some reference implementations work in f32 inside: a larger step
        # drowns their rounding. A wrong gradient is wrong at any step.
        slope = max(slope, np.nanmin([distance(step) for step in (1e-6, 1e-4, 1e-2)]))

    engine = session(onnx.load(case["backward"]).SerializeToString())
    kinds = {i.name: i.type for i in engine.get_inputs()}
    feed = {**single, **upstream}
    feed = {k: np.asarray(v, np.float32 if kinds[k] == "tensor(float)" else None) for k, v in feed.items() if k in kinds}
    made = engine.run([g for _, g in case["gradients"]], feed)
    worst = 0.0
    for ours, exact in zip(made, gradients):
        scale = max(float(np.max(np.abs(exact), initial=0.0)), 1e-3)
        worst = max(worst, float(np.max(np.abs(ours - exact), initial=0.0)) / scale)
    return {"slope": float(slope), "engine": worst}


np.seterr(all="ignore")
for line in sys.stdin:
    case = json.loads(line)
    try:
        result = check(case, False)
        if not result.get("slope", 1.0) < 1e-4:
            result = check(case, True)
    except Exception as error:  # whatever it is, it belongs to this case
        result = {"error": f"{type(error).__name__}: {error}"[:300]}
    print(json.dumps({"name": case["name"], **result}), flush=True)
