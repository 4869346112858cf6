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
        try:
            self.session = session(model.SerializeToString())
        except Exception:
            self.session = ReferenceEvaluator(model)

    def run(self, feed):
        return dict(zip(self.names, self.session.run(None, feed)))


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
    feed = {k: v.astype(np.float32) if kinds[k] == "tensor(float)" else v for k, v in feed.items() if k in kinds}
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
