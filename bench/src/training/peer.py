"""PyTorch as the peer of a training step.

`peer.py steps FORWARD.onnx TRAINED.json THREADS RATE MOMENTUM BATCH CLASSES`
builds the network of an ONNX file from PyTorch's own layers, then answers
lines on stdin: `N` takes N steps and prints their times in milliseconds and
the process's peak memory in bytes, as JSON.

`peer.py gradients FORWARD.onnx GRADIENTS.onnx TRAINED.json BATCH CLASSES`
compares gradients of one batch: PyTorch's in f32 and those of the second
graph, run by stock ONNX Runtime, each with PyTorch's in f64; prints the worst
relative error of any weight that has a gradient, for both.

`peer.py learn FORWARD.onnx FOLDER SEED EPOCHS BATCH RATE THREADS` trains on the
IDX files of a folder and prints the accuracy on the test set behind each epoch.
"""

import gzip
import json
import math
import resource
import sys
import time

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper


def conv(x, a):
    pads = a.get("pads", [0] * 4)
    bias = x[2] if len(x) > 2 else None
    return F.conv2d(x[0], x[1], bias, a["strides"], pads[:2], a.get("dilations", 1), a.get("group", 1))


def reshape(x, a):
    sizes = [int(s) for s in x[1]]
    return x[0].reshape([x[0].shape[i] if s == 0 else s for i, s in enumerate(sizes)])


LAYERS = {
    "Add": lambda x, a: x[0] + x[1],
    "BatchNormalization": lambda x, a: F.batch_norm(x[0], x[3], x[4], x[1], x[2], True, 0.1, a["epsilon"]),
    "Clip": lambda x, a: F.hardtanh(x[0], float(x[1]), float(x[2])),
    "Conv": conv,
    "Flatten": lambda x, a: torch.flatten(x[0], 1),
    "Gather": lambda x, a: F.embedding(x[1], x[0]),
    "Gelu": lambda x, a: F.gelu(x[0]),
    "Gemm": lambda x, a: F.linear(x[0], x[1], x[2]),
    "GlobalAveragePool": lambda x, a: F.adaptive_avg_pool2d(x[0], 1),
    "LayerNormalization": lambda x, a: F.layer_norm(x[0], x[1].shape, x[1], x[2], a["epsilon"]),
    "MatMul": lambda x, a: x[0] @ x[1],
    "MaxPool": lambda x, a: F.max_pool2d(x[0], a["kernel_shape"], a["strides"], a.get("pads", [0])[0]),
    "Mul": lambda x, a: x[0] * x[1],
    "ReduceMean": lambda x, a: x[0].mean([int(i) for i in (a.get("axes") or x[1])], keepdim=bool(a["keepdims"])),
    "Relu": lambda x, a: F.relu(x[0]),
    "Reshape": reshape,
    "Softmax": lambda x, a: F.softmax(x[0], -1),
    "Transpose": lambda x, a: x[0].permute(a["perm"]),
}


class Net(torch.nn.Module):
    def __init__(self, path, trained, dtype):
        super().__init__()
        graph = onnx.load(path).graph
        self.input = graph.input[0]
        self.weights = {}
        for tensor in graph.initializer:
            value = torch.from_numpy(numpy_helper.to_array(tensor).copy())
            value = value.to(dtype) if value.is_floating_point() else value
            if tensor.name in trained:
                value = torch.nn.Parameter(value)
                self.register_parameter(tensor.name.replace(".", "_"), value)
            self.weights[tensor.name] = value
        nodes = [
            (n.op_type, list(n.input), n.output[0], {a.name: onnx.helper.get_attribute_value(a) for a in n.attribute})
            for n in graph.node
        ]
        # Exporters write GELU in five nodes; PyTorch's users write one.
        self.nodes, i = [], 0
        while i < len(nodes):
            if [n[0] for n in nodes[i : i + 5]] == ["Div", "Erf", "Add", "Mul", "Mul"]:
                self.nodes.append(("Gelu", nodes[i][1][:1], nodes[i + 4][2], {}))
                i += 5
            else:
                self.nodes.append(nodes[i])
                i += 1

    def forward(self, x):
        values = {**self.weights, self.input.name: x}
        for kind, inputs, output, attributes in self.nodes:
            values[output] = LAYERS[kind]([values[i] if i else None for i in inputs], attributes)
        return values[output]


def batch(value, size, classes):
    rng = np.random.default_rng(0)
    shape = [d.dim_value or size for d in value.type.tensor_type.shape.dim]
    words = value.type.tensor_type.elem_type == onnx.TensorProto.INT64
    x = rng.integers(0, 1000, shape) if words else rng.random(shape, dtype=np.float32)
    return x, rng.integers(0, classes, (size,))


def steps(path, trained, threads, rate, momentum, size, classes):
    torch.set_num_threads(int(threads))
    net = Net(path, set(json.loads(trained)), torch.float32).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=float(rate), momentum=float(momentum))
    x, y = (torch.from_numpy(a) for a in batch(net.input, int(size), int(classes)))
    print(json.dumps({"version": torch.__version__}), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            optimizer.step()
            loss.item()
            times.append(1e3 * (time.perf_counter() - start))
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps({"ms": times, "peak": peak}), flush=True)


def gradients(path, ours, trained, size, classes):
    import onnxruntime

    trained = json.loads(trained)
    found = {}
    for dtype in (torch.float64, torch.float32):
        net = Net(path, set(trained), dtype).train()
        x, y = (torch.from_numpy(a) for a in batch(net.input, int(size), int(classes)))
        x = x.to(dtype) if x.is_floating_point() else x
        F.cross_entropy(net(x), y).backward()
        found[dtype] = {name: net.weights[name].grad.double().numpy() for name in trained}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(ours, options, providers=["CPUExecutionProvider"])
    x, y = batch(net.input, int(size), int(classes))
    made = session.run(None, {net.input.name: x, "target": y})
    exact = found[torch.float64]
    size_of = {name: float(np.linalg.norm(exact[name])) for name in trained}
    # Biases in front of a normalisation have no gradient but rounding.
    there = [name for name in trained if size_of[name] > 1e-9 * max(size_of.values())]

    def worst(of):
        far = {name: float(np.linalg.norm(of[name] - exact[name])) / size_of[name] for name in there}
        name = max(far, key=far.get)
        return far[name], name

    theirs = worst(found[torch.float32])
    mine = worst(dict(zip(trained, made)))
    print(json.dumps({"pytorch": theirs[0], "ours": mine[0], "weight": mine[1]}))


def idx(folder, name):
    with gzip.open(f"{folder}/{name}.gz") as file:
        raw = file.read()
    sizes = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(sizes).copy()


def learn(path, folder, seed, epochs, size, rate, threads):
    epochs, size, rate = int(epochs), int(size), float(rate)
    torch.set_num_threads(int(threads))
    torch.manual_seed(int(seed))
    constants = [t.name for t in onnx.load(path).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    net = Net(path, set(constants), torch.float32).train()
    optimizer = torch.optim.SGD(net.parameters(), lr=rate, momentum=0.9)
    pictures, test = (
        torch.from_numpy(idx(folder, f"{part}-images-idx3-ubyte"))[:, None].float() / 255 for part in ("train", "t10k")
    )
    classes, wanted = (torch.from_numpy(idx(folder, f"{part}-labels-idx1-ubyte")).long() for part in ("train", "t10k"))
    mean, deviation = pictures.mean(), pictures.std()
    pictures, test = (pictures - mean) / deviation, (test - mean) / deviation
    steps = math.ceil(len(pictures) / size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * steps)
    print(json.dumps({"version": torch.__version__}), flush=True)
    for _ in range(epochs):
        for chosen in torch.randperm(len(pictures)).split(size):
            optimizer.zero_grad(set_to_none=True)
            F.cross_entropy(net(pictures[chosen]), classes[chosen]).backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            right = sum((net(x).argmax(1) == y).sum().item() for x, y in zip(test.split(1000), wanted.split(1000)))
        print(json.dumps({"accuracy": right / len(test)}), flush=True)


if __name__ == "__main__":
    {"steps": steps, "gradients": gradients, "learn": learn}[sys.argv[1]](*sys.argv[2:])
