"""Writes finder.onnx, reader.onnx, image.npy and chain.json: a chain of two small
models with weights drawn at random, and what NumPy and ONNX Runtime make of it.

    python make.py

Needs numpy, onnx and onnxruntime. What the chain does stands in
examples/services/chain.toml.
"""

import json
import tomllib
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

here = Path(__file__).parent
rng = np.random.default_rng(11)
FLOAT = TensorProto.FLOAT


def weight(name, *shape, scale=1.0):
    return numpy_helper.from_array((rng.normal(size=shape) * scale).astype(np.float32), name)


def constant(name, values, dtype):
    return numpy_helper.from_array(np.array(values, dtype), name)


def save(name, nodes, inputs, outputs, weights):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        name,
        [value(n, FLOAT, s) for n, s in inputs],
        [value(n, FLOAT, s) for n, s in outputs],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, here / f"{name}.onnx")


def run(model, **inputs):
    data = model if isinstance(model, bytes) else (here / f"{model}.onnx").read_bytes()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(None, inputs)


node = helper.make_node
corners = [[2, 3, 20, 15], [-4, -4, 9, 9], [10, 5, 40, 30], [6, 6, 6.2, 20], [0, 0, 32, 24], [12, 2, 25, 22]]
save(
    "finder",
    [
        node("GlobalAveragePool", ["image"], ["mean"]),
        node("Flatten", ["mean"], ["flat"]),
        node("Gemm", ["flat", "wb", "corners"], ["rows"]),
        node("Reshape", ["rows", "shape"], ["boxes"]),
        node("Gemm", ["flat", "ws", "bs"], ["raw"]),
        node("Sigmoid", ["raw"], ["scores"]),
    ],
    [("image", [1, 3, 24, 32])],
    [("boxes", [1, 6, 4]), ("scores", [1, 6])],
    [
        weight("wb", 3, 24, scale=0.004),
        constant("corners", np.ravel(corners), np.float32),
        constant("shape", [1, 6, 4], np.int64),
        weight("ws", 3, 6, scale=0.002),
        constant("bs", [0.5, 1.0, -0.5, 2.0, -3.0, 0.0], np.float32),
    ],
)
save(
    "reader",
    [
        node("Conv", ["x", "wc", "bc"], ["c"], kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
        node("Relu", ["c"], ["r"]),
        node("GlobalAveragePool", ["r"], ["m"]),
        node("Flatten", ["m"], ["f"]),
        node("Gemm", ["f", "wl", "bl"], ["label"]),
    ],
    [("x", ["batch", 3, 8, 12])],
    [("label", ["batch", 5])],
    [weight("wc", 4, 3, 3, 3, scale=0.4), weight("bc", 4), weight("wl", 4, 5), weight("bl", 5)],
)

image = rng.uniform(0, 255, size=(1, 3, 24, 32)).astype(np.float32)
np.save(here / "image.npy", image)
boxes, scores = run("finder", image=image)
crops = tomllib.loads((here / "../../../../../examples/services/chain.toml").read_text())["member"][1]["crops"]
clipped = np.clip(boxes[0].astype(np.float64), 0, [32, 24, 32, 24])
wide = ((clipped[:, 2:] - clipped[:, :2]) >= 1).all(axis=1)
looked_at = [i for i in np.argsort(-scores[0], kind="stable") if wide[i] and scores[0, i] >= crops["score_min"]]
looked_at = looked_at[: crops["boxes_max"]]
value = helper.make_tensor_value_info
height, width = crops["size"]
align = helper.make_graph(
    [
        node(
            "RoiAlign",
            ["x", "rois", "of"],
            ["y"],
            coordinate_transformation_mode="half_pixel",
            output_height=height,
            output_width=width,
            sampling_ratio=1,
        )
    ],
    "align",
    [value("x", FLOAT, image.shape), value("rois", FLOAT, ["n", 4]), value("of", TensorProto.INT64, ["n"])],
    [value("y", FLOAT, ["n", 3, height, width])],
)
align = helper.make_model(align, opset_imports=[helper.make_opsetid("", 16)], ir_version=8).SerializeToString()
rois = clipped[looked_at].astype(np.float32)
cut = run(align, x=image, rois=rois, of=np.zeros(len(rois), np.int64))[0]
channels = (1, 3, 1, 1)
cut = (cut * crops["scale"] - np.reshape(crops["mean"], channels)) / np.reshape(crops["std"], channels)
label = run("reader", x=cut.astype(np.float32))[0]
print("scores", scores, "looked at", looked_at)
wanted = {"boxes": boxes, "scores": scores, "crops": np.array(looked_at), "label": label}
numbers = {name: {"shape": list(v.shape), "data": v.ravel().tolist()} for name, v in wanted.items()}
(here / "chain.json").write_text(json.dumps(numbers) + "\n")
