"""ONNX operators in PyTorch, for `make.py`: what a graph means, by another hand.

Tensors are in double precision, whatever the model says.
"""

import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper


def attributes(node):
    return {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}


def text(value, default):
    return value.decode() if value is not None else default


def ints(given):
    return [int(n) for n in (given if isinstance(given, list) else given.flatten())]


def padded(x, pads, value=0.0, mode="constant"):
    axes = len(pads) // 2
    turned = [n for axis in reversed(range(axes)) for n in (pads[axis], pads[axes + axis])]
    while mode == "constant" and turned and turned[-2:] == [0, 0]:
        turned = turned[:-2]
    return F.pad(x, turned, mode=mode, value=value) if mode == "constant" else F.pad(x, turned, mode=mode)


def window(x, a):
    axes = x.dim() - 2
    kernel = a.get("kernel_shape")
    one = [1] * axes
    pads = list(a.get("pads", [0] * 2 * axes))
    if text(a.get("auto_pad"), "NOTSET") == "SAME_UPPER":
        strides, begin, end = a.get("strides", one), [], []
        for size, k, s in zip(x.shape[2:], kernel, strides):
            whole = max((-(-size // s) - 1) * s + k - size, 0)
            begin.append(whole // 2)
            end.append(whole - whole // 2)
        pads = begin + end
    return kernel, list(a.get("strides", one)), list(a.get("dilations", one)), pads


def conv(x, w, b=None, **a):
    _, strides, dilations, pads = window(x, {**a, "kernel_shape": list(w.shape[2:])})
    run = [F.conv1d, F.conv2d, F.conv3d][x.dim() - 3]
    return run(padded(x, pads), w, b, strides, 0, dilations, a.get("group", 1))


def conv_transpose(x, w, b=None, **a):
    _, strides, dilations, pads = window(x, {**a, "kernel_shape": list(w.shape[2:])})
    axes = x.dim() - 2
    run = [F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d][axes - 1]
    more = list(a.get("output_padding", [0] * axes))
    return run(x, w, b, strides, pads[:axes], more, a.get("group", 1), dilations)


def max_pool(x, **a):
    kernel, strides, dilations, pads = window(x, a)
    run = [F.max_pool1d, F.max_pool2d, F.max_pool3d][x.dim() - 3]
    axes = x.dim() - 2
    if a.get("ceil_mode", 0) and pads[:axes] == pads[axes:]:
        return run(x, kernel, strides, pads[:axes], dilations, True)  # which windows are dropped depends on the pads
    whole = padded(x, pads, float("-inf"))
    return run(whole, kernel, strides, 0, dilations, bool(a.get("ceil_mode", 0)))


def average_pool(x, **a):
    kernel, strides, _, pads = window(x, a)
    axes = x.dim() - 2
    run = [F.avg_pool1d, F.avg_pool2d, F.avg_pool3d][axes - 1]
    return run(x, kernel, strides, pads[:axes], bool(a.get("ceil_mode", 0)), bool(a.get("count_include_pad", 0)))


def lp_pool(x, **a):
    kernel, strides, _, pads = window(x, a)
    p = float(a.get("p", 2))
    total = F.avg_pool2d(padded(x, pads).abs() ** p, kernel, strides) * kernel[0] * kernel[1]
    return total ** (1 / p)


def resize(x, *given, opset, **a):
    scales = given[-1] if len(given) in (1, 2) else given[1]
    sizes = given[2] if len(given) > 2 else None
    mode = text(a.get("mode"), "nearest")
    asymmetric = opset < 11 or text(a.get("coordinate_transformation_mode"), "half_pixel") == "asymmetric"
    corners = text(a.get("coordinate_transformation_mode"), "half_pixel") == "align_corners"
    names = {"nearest": "nearest" if asymmetric else "nearest-exact", "linear": "bilinear", "cubic": "bicubic"}
    to = {"size": ints(sizes)[-2:]} if sizes is not None else {"scale_factor": [float(s) for s in scales[2:]]}
    return F.interpolate(x, mode=names[mode], align_corners=corners if mode != "nearest" else None, **to)


def pad(x, pads=None, value=None, *_, **a):
    pads = ints(pads) if pads is not None else a["pads"]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}
    mode = mode[text(a.get("mode"), "constant")]
    axes = len(pads) // 2
    # Other modes pad the last axes only.
    inner = pads if mode == "constant" else pads[2:axes] + pads[axes + 2:]
    return padded(x, list(inner), float(value or 0.0), mode)


def layer_norm(x, scale, bias=None, **a):
    shape = x.shape[a.get("axis", -1) % x.dim():]
    return F.layer_norm(x, shape, scale, bias, a.get("epsilon", 1e-5))


def rms_norm(x, scale, **a):
    shape = x.shape[a.get("axis", -1) % x.dim():]
    return F.rms_norm(x, shape, scale, a.get("epsilon", 1e-5))


def softmax(x, opset, log=False, **a):
    run = F.log_softmax if log else F.softmax
    if opset >= 13 and not log:
        return torch._safe_softmax(x, a.get("axis", -1))  # of nothing but -inf zeros, as in attention
    if opset >= 13:
        return run(x, a.get("axis", -1))
    axis = a.get("axis", 1) % x.dim()
    return run(x.flatten(axis), -1).reshape(x.shape)


def reduce(kind, x, axes=None, **a):
    axes = ints(axes) if axes is not None else a.get("axes", list(range(x.dim())))
    kept = bool(a.get("keepdims", 1))
    along = {
        "Sum": lambda: x.sum(axes, kept), "Mean": lambda: x.mean(axes, kept), "Max": lambda: x.amax(axes, kept),
        "Min": lambda: x.amin(axes, kept), "L1": lambda: x.abs().sum(axes, kept),
        "L2": lambda: x.square().sum(axes, kept).sqrt(), "LogSum": lambda: x.sum(axes, kept).log(),
        "LogSumExp": lambda: x.logsumexp(axes, kept), "SumSquare": lambda: x.square().sum(axes, kept),
        "Prod": lambda: x.prod(axes[0], kept),
    }
    return along[kind]()


def recurrent(kind, x, w, r, b=None, lengths=None, first=None, cell_state=None, *, opset, **a):
    """[steps, batch, inputs] -> [steps, directions, batch, hidden], by the module of PyTorch."""
    hidden, both = a["hidden_size"], w.shape[0] == 2
    order = {"RNN": [0], "LSTM": [0, 2, 3, 1], "GRU": [1, 0, 2]}[kind]

    def turned(m):
        return torch.cat([m.split(hidden)[gate] for gate in order])

    cell = getattr(torch.nn, kind)(x.shape[2], hidden, bidirectional=both).double()
    parameters = {}
    for d in range(w.shape[0]):
        end = "_l0" + ("_reverse" if d else "")
        biases = b[d] if b is not None else torch.zeros(2 * len(w[d]), dtype=x.dtype)
        parts = {"weight_ih": w[d], "weight_hh": r[d], "bias_ih": biases[:len(w[d])], "bias_hh": biases[len(w[d]):]}
        parameters.update({name + end: turned(part) for name, part in parts.items()})
    states = () if first is None else (first,) if cell_state is None else ((first, cell_state),)
    y, _ = torch.func.functional_call(cell, parameters, (x, *states))
    return y.reshape(*y.shape[:2], -1, hidden).permute(0, 2, 1, 3)


def gru_reset_first(x, w, r, b, lengths=None, first=None, **a):
    """The form of a GRU that ONNX has by default, and PyTorch hasn't."""
    hidden = a["hidden_size"]
    h, outputs = torch.zeros(x.shape[1], hidden, dtype=x.dtype) if first is None else first[0], []
    (wz, wr, wh), (rz, rr, rh), b = w[0].split(hidden), r[0].split(hidden), b[0].split(hidden)
    for step in x:
        z = torch.sigmoid(step @ wz.T + h @ rz.T + b[0] + b[3])
        reset = torch.sigmoid(step @ wr.T + h @ rr.T + b[1] + b[4])
        new = torch.tanh(step @ wh.T + (reset * h) @ rh.T + b[2] + b[5])
        h = (1 - z) * new + z * h
        outputs.append(h)
    return torch.stack(outputs).unsqueeze(1)


def sliced(x, starts=None, ends=None, axes=None, steps=None, **a):
    starts, ends = (ints(starts), ints(ends)) if starts is not None else (a["starts"], a["ends"])
    axes = ints(axes) if axes is not None else a.get("axes", list(range(len(starts))))
    for axis, start, end in zip(axes, starts, ends):
        size = x.shape[axis]
        start, end = (min(max(n + size if n < 0 else n, 0), size) for n in (start, end))
        x = x.narrow(axis, start, end - start)
    return x


def reshape(x, shape, **_):
    return x.reshape([x.shape[i] if n == 0 else n for i, n in enumerate(ints(shape))])


def split(x, sizes=None, *, outputs, **a):
    axis = a.get("axis", 0)
    sizes = ints(sizes) if sizes is not None else a.get("split", x.shape[axis] // outputs)
    return x.split(sizes, axis)


def depth_to_space(x, **a):
    n, c, h, w = x.shape
    b = a["blocksize"]
    apart = x.reshape(n, b, b, c // b // b, h, w).permute(0, 3, 4, 1, 5, 2)
    return apart.reshape(n, c // b // b, h * b, w * b)


def clip(x, low=None, high=None, **a):
    if any(bound is not None and bound.requires_grad for bound in (low, high)):
        return x.clamp(low, high)
    low = a.get("min") if low is None else float(low)
    high = a.get("max") if high is None else float(high)
    return x.clamp(low, high)


def gemm(a, b, c=None, **o):
    a, b = (a.T if o.get("transA") else a), (b.T if o.get("transB") else b)
    product = o.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + o.get("beta", 1.0) * c


def axes_of(x, axes, a, also=0):
    axes = ints(axes) if axes is not None else a["axes"]
    return sorted(n % (x.dim() + also * len(axes)) for n in axes)


def squeeze(x, axes=None, **a):
    return x.squeeze(axes_of(x, axes, a))


def unsqueeze(x, axes=None, **a):
    for axis in axes_of(x, axes, a, 1):
        x = x.unsqueeze(axis)
    return x


ELEMENTWISE = {
    "Relu": F.relu, "Sigmoid": torch.sigmoid, "Tanh": torch.tanh, "Softplus": F.softplus, "Softsign": F.softsign,
    "Exp": torch.exp, "Log": torch.log, "Sqrt": torch.sqrt, "Abs": torch.abs, "Neg": torch.neg, "Erf": torch.erf,
    "Reciprocal": torch.reciprocal, "Sin": torch.sin, "Cos": torch.cos, "HardSwish": F.hardswish, "Mish": F.mish,
    "Identity": lambda x: x, "Selu": F.selu, "IsNaN": torch.isnan,
}
BINARY = {
    "Add": torch.add, "Sub": torch.sub, "Mul": torch.mul, "Div": torch.div, "Pow": torch.pow, "MatMul": torch.matmul,
    "Max": torch.maximum, "Min": torch.minimum,
}
WITH_ATTRIBUTES = {
    "Conv": conv, "ConvTranspose": conv_transpose, "MaxPool": max_pool, "AveragePool": average_pool,
    "LpPool": lp_pool, "Pad": pad, "LayerNormalization": layer_norm, "RMSNormalization": rms_norm, "Slice": sliced,
    "Reshape": reshape, "DepthToSpace": depth_to_space, "Clip": clip, "Gemm": gemm, "Squeeze": squeeze,
    "Unsqueeze": unsqueeze,
    "InstanceNormalization": lambda x, s, b, **a: F.instance_norm(x, weight=s, bias=b, eps=a.get("epsilon", 1e-5)),
    "GroupNormalization": lambda x, s, b, **a: F.group_norm(x, a["num_groups"], s, b, a.get("epsilon", 1e-5)),
    "LpNormalization": lambda x, **a: F.normalize(x, a.get("p", 2), a.get("axis", -1), 0.0),
    "LRN": lambda x, **a: F.local_response_norm(
        x, a["size"], a.get("alpha", 1e-4), a.get("beta", 0.75), a.get("bias", 1.0)),
    "GlobalAveragePool": lambda x: x.mean(list(range(2, x.dim())), True),
    "GlobalMaxPool": lambda x: x.amax(list(range(2, x.dim())), True),
    "LeakyRelu": lambda x, **a: F.leaky_relu(x, a.get("alpha", 0.01)),
    "Elu": lambda x, **a: F.elu(x, a.get("alpha", 1.0)),
    "Celu": lambda x, **a: F.celu(x, a.get("alpha", 1.0)),
    "ThresholdedRelu": lambda x, **a: torch.where(x > a.get("alpha", 1.0), x, 0.0),
    "HardSigmoid": lambda x, **a: (a.get("alpha", 0.2) * x + a.get("beta", 0.5)).clamp(0, 1),
    "Gelu": lambda x, **a: F.gelu(x, approximate=text(a.get("approximate"), "none")),
    "PRelu": lambda x, slope: torch.where(x >= 0, x, x * slope),
    "Flatten": lambda x, **a: x.reshape(-1 if a.get("axis", 1) == 0 else x.shape[:a.get("axis", 1)].numel(), *[
        x.shape[a.get("axis", 1):].numel()]),
    "Transpose": lambda x, **a: x.permute(a.get("perm", list(reversed(range(x.dim()))))),
    "Concat": lambda *xs, axis: torch.cat(xs, axis),
    "Gather": lambda x, i, **a: x.index_select(a.get("axis", 0), i.flatten().long()).reshape(
        *x.shape[:a.get("axis", 0)], *i.shape, *x.shape[a.get("axis", 0) + 1:]),
    "CumSum": lambda x, axis, **_: x.cumsum(int(axis)),
    "Einsum": lambda *xs, equation: torch.einsum(text(equation, ""), *xs),
    "Expand": lambda x, shape: x.expand(*ints(shape)),
    "Tile": lambda x, repeats: x.repeat(*ints(repeats)),
    "Where": torch.where,
    "Mean": lambda *xs: torch.stack(torch.broadcast_tensors(*xs)).mean(0),
    "Sum": lambda *xs: sum(xs),
    "Cast": lambda x, **_: x,
}


def run(model, values, statistics):
    """Computes a graph. `values` has inputs and weights by name; batch normalisations train, and keep their running
    statistics in `statistics`."""
    opset = model.opset_import[0].version
    values = dict(values)
    for node in model.graph.node:
        kind, a = node.op_type, attributes(node)
        x = [values[name] if name else None for name in node.input]
        if kind == "Constant":
            out = torch.from_numpy(numpy_helper.to_array(a["value"]).copy()) if "value" in a else torch.tensor(
                next(iter(a.values())))
            out = out.double() if out.is_floating_point() else out
        elif kind == "BatchNormalization":
            if node.input[3] not in statistics:  # of the graph's own making
                shape = [-1] + [1] * (x[0].dim() - 2)
                scale, bias, mean, variance = (value.reshape(shape) for value in x[1:])
                values[node.output[0]] = (x[0] - mean) / (variance + a.get("epsilon", 1e-5)).sqrt() * scale + bias
                continue
            mean, variance = (statistics[name] for name in node.input[3:5])
            out = F.batch_norm(x[0], mean, variance, x[1], x[2], True, round(1 - a.get("momentum", 0.9), 6),
                               a.get("epsilon", 1e-5))
        elif kind in ("Softmax", "LogSoftmax"):
            out = softmax(x[0], opset, kind == "LogSoftmax", **a)
        elif kind in ("Resize", "Upsample"):
            if "scales" in a:
                x.append(torch.tensor(a.pop("scales")))
            out = resize(*x, opset=opset, **a)
        elif kind in ("RNN", "LSTM", "GRU"):
            first = kind == "GRU" and not a.get("linear_before_reset")
            out = gru_reset_first(*x, **a) if first else recurrent(kind, *x, opset=opset, **a)
        elif kind.startswith("Reduce"):
            out = reduce(kind[len("Reduce"):], *x, **a)
        elif kind == "Split":
            out = split(*x, outputs=len(node.output), **a)
        elif kind in ELEMENTWISE:
            out = ELEMENTWISE[kind](x[0])
        elif kind in BINARY:
            out = BINARY[kind](*x)
        else:
            out = WITH_ATTRIBUTES[kind](*x, **a)
        outputs = out if isinstance(out, tuple) else (out,)
        values.update(zip(node.output, outputs))
    return values
