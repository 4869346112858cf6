"""Writes pairs of models whose weights differ in known ways, and one large
pair: `python cases.py FOLDER`, with numpy and onnx. Prints one line a pair:
title, old file, new file."""

import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

folder = Path(sys.argv[1])
rng = np.random.default_rng(0)


def bf16(weights):
    """The nearest bf16, ties to even, as bits."""
    bits = weights.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def save(name, weights, narrow):
    kind = TensorProto.BFLOAT16 if narrow else TensorProto.FLOAT
    raw = [(bf16(w) if narrow else w).tobytes() for w in weights]
    tensors = [helper.make_tensor(f"w{i}", kind, w.shape, r, raw=True) for i, (w, r) in enumerate(zip(weights, raw))]
    nodes = [helper.make_node("MatMul", [f"h{i}", f"w{i}"], [f"h{i + 1}"]) for i in range(len(weights))]
    value = lambda name: helper.make_tensor_value_info(name, kind, None)
    graph = helper.make_graph(nodes, "g", [value("h0")], [value(f"h{len(weights)}")], tensors)
    onnx.save(helper.make_model(graph), folder / name)
    return folder / name


def drawn(shapes):
    return [rng.normal(0, 0.05, shape).astype(np.float32) for shape in shapes]


def nudged(weights, by, share=1.0):
    factor = lambda w: 1 + rng.uniform(-by, by, w.shape) * (rng.random(w.shape) < share)
    return [(w * factor(w)).astype(np.float32) for w in weights]


# Two million weights.
base = drawn([(512, 1024), (1024, 1024), (1024, 512)])
for title, narrow, by, share in [
    ("all weights +-1%, fp32", False, 0.01, 1.0),
    ("all +-1%, bf16", True, 0.01, 1.0),
    ("all +-0.1%, bf16", True, 0.001, 1.0),
    ("5% of weights +-1%, fp32", False, 0.01, 0.05),
]:
    name = title.replace(" ", "_").replace("%", "")
    old, new = save(f"{name}.old", base, narrow), save(f"{name}.new", nudged(base, by, share), narrow)
    print(title, old, new, sep="\t")

large = drawn([(2500, 2500)] * 4)
print("large", save("large.old", large, False), save("large.new", nudged(large, 0.01), False), sep="\t")
