"""Writes reference.json: what NumPy and ONNX Runtime make of small cases.

    python make.py

Needs numpy, onnx and onnxruntime. Crops are RoiAlign's, with half_pixel and one
sample for each pixel, so a convention of our own is held against another's code.
"""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

rng = np.random.default_rng(7)


def numbers(array):
    array = np.asarray(array)
    flat = [None if isinstance(v, float) and np.isnan(v) else v for v in array.ravel().tolist()]
    return {"shape": list(array.shape), "values": flat}


def softmax(x, axis):
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return e / e.sum(axis=axis, keepdims=True)


def sigmoids(x, axis):
    p = 1 / (1 + np.exp(-x))
    return np.concatenate([1 - p, p], axis=axis)


def combined():
    cases = []
    for shape, axis in [((3, 5), -1), ((2, 4, 3), 1), ((2, 3, 4), 2), ((4, 1), -1)]:
        answers = [rng.normal(size=shape).astype(np.float32) for _ in range(3)]
        weights = [1.0, 2.5, 0.5]
        alone = shape[axis] == 1
        probabilities = [
            (sigmoids if alone else softmax)(a.astype(np.float64), axis) for a in answers
        ]
        votes = [np.eye(p.shape[axis])[p.argmax(axis=axis)] for p in probabilities]
        votes = [np.moveaxis(v, -1, axis) for v in votes]
        of = {"mean": probabilities, "vote": votes, "values": answers}
        wanted = {
            how: numbers(np.average(np.stack(parts).astype(np.float64), axis=0, weights=weights))
            for how, parts in of.items()
        }
        cases.append(
            {"axis": axis, "weights": weights, "answers": [numbers(a) for a in answers], "wanted": wanted}
        )
    return cases


def roi_align(picture, boxes, size):
    node = helper.make_node(
        "RoiAlign",
        ["x", "rois", "of"],
        ["y"],
        coordinate_transformation_mode="half_pixel",
        mode="avg",
        output_height=size[0],
        output_width=size[1],
        sampling_ratio=1,
        spatial_scale=1.0,
    )
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        [node],
        "g",
        [
            value("x", TensorProto.FLOAT, picture.shape),
            value("rois", TensorProto.FLOAT, boxes.shape),
            value("of", TensorProto.INT64, [len(boxes)]),
        ],
        [value("y", TensorProto.FLOAT, [len(boxes), picture.shape[1], *size])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    onnx.checker.check_model(model)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    of = np.zeros(len(boxes), np.int64)
    return session.run(None, {"x": picture, "rois": boxes, "of": of})[0]


def crops():
    cases = []
    for channels, height, width, size in [(3, 11, 14, (4, 5)), (1, 8, 8, (16, 3)), (2, 20, 9, (7, 7))]:
        picture = rng.uniform(0, 255, size=(1, channels, height, width)).astype(np.float32)
        left, top = rng.uniform(0, width - 2, 4), rng.uniform(0, height - 2, 4)
        right, bottom = rng.uniform(left + 1, width), rng.uniform(top + 1, height)
        boxes = np.stack([left, top, right, bottom], axis=1).astype(np.float32)
        boxes = np.concatenate([boxes, [[0, 0, width, height]]]).astype(np.float32)
        mean, std = rng.uniform(0.2, 0.6, channels), rng.uniform(0.2, 0.3, channels)
        plain = roi_align(picture, boxes, size)
        shape = (1, channels, 1, 1)
        normal = (plain / 255.0 - mean.reshape(shape)) / std.reshape(shape)
        cases.append(
            {
                "picture": numbers(picture),
                "boxes": numbers(boxes),
                "size": list(size),
                "mean": mean.tolist(),
                "std": std.tolist(),
                "plain": numbers(plain),
                "normal": numbers(normal),
            }
        )
    return cases


def pictures():
    cases = []
    for channels, height, width, white in [(3, 9, 7, 255.0), (1, 3, 3, 1.0)]:
        batch = rng.uniform(0, white, size=(2, channels, height, width)).astype(np.float32)
        grey = batch.astype(np.float64).mean(axis=1) / white
        laplacian = (
            grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] + grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] - 4 * grey[:, 1:-1, 1:-1]
        )
        cases.append(
            {
                "pictures": numbers(batch),
                "white": white,
                "sharpness": laplacian.reshape(2, -1).var(axis=1).tolist(),
                "brightness": grey.reshape(2, -1).mean(axis=1).tolist(),
            }
        )
    return cases


reference = {"combined": combined(), "crops": crops(), "pictures": pictures()}
(Path(__file__).parent / "reference.json").write_text(json.dumps(reference) + "\n")
