"""The networks that `make.py` puts through the tools: small, with a free batch, and named as exporters name things."""

import numpy
import onnx
from onnx import numpy_helper, parser


def model(signature, body, weights, opset=17):
    """`signature`: `(inputs) => (outputs)` in ONNX's text form; `weights`: arrays, or shapes to be filled."""
    made = parser.parse_model(f"<ir_version: 8, opset_import: [\"\" : {opset}]> network {signature} {{ {body} }}")
    rng = numpy.random.default_rng(11)
    for name, value in weights.items():
        if not isinstance(value, numpy.ndarray):
            fan = max(1, int(numpy.prod(value[1:])))
            value = rng.normal(0, fan ** -0.5, value).astype(numpy.float32)
        made.graph.initializer.append(numpy_helper.from_array(value, name))
    for i, node in enumerate(made.graph.node):
        node.name = f"/{node.op_type}_{i}"
    onnx.checker.check_model(made)
    return made


def f32(*values):
    return numpy.array(values, numpy.float32)


def number(value, kind=numpy.float32):
    return numpy.array(value, kind)


def i64(*values):
    return numpy.array(values, numpy.int64)


def normalised(suffix, channels):
    """Weights of a batch normalisation."""
    ramp = numpy.arange(channels, dtype=numpy.float32)
    return {f"scale{suffix}": 1 + ramp / 10, f"shift{suffix}": ramp / 20 - 0.1, f"mean{suffix}": ramp / 30,
            f"var{suffix}": 0.5 + ramp / 7}


def cnn(opset=17, channels=4):
    """A convolutional network with batch normalisation and a shortcut."""
    body = """
        a = Conv<pads = [1, 1, 1, 1]>(x, w1, b1)
        b = BatchNormalization(a, scale1, shift1, mean1, var1)
        c = Relu(b)
        d = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(c)
        e = Conv<pads = [1, 1, 1, 1]>(d, w2)
        f = BatchNormalization(e, scale2, shift2, mean2, var2)
        g = Add(f, d)
        h = Relu(g)
        p = GlobalAveragePool(h)
        q = Flatten(p)
        y = Gemm<transB = 1>(q, head, bias)
    """
    weights = {"w1": (channels, 3, 3, 3), "b1": (channels,), "w2": (channels, channels, 3, 3), "head": (5, channels),
               "bias": (5,), **normalised(1, channels), **normalised(2, channels)}
    return model("(float[N, 3, 6, 6] x) => (float[N, 5] y)", body, weights, opset)


def depthwise(opset=17):
    """Separable convolutions with clipped activations, and gates."""
    body = """
        a = Conv<strides = [2, 2], pads = [1, 1, 1, 1]>(x, stem)
        b = BatchNormalization(a, scale1, shift1, mean1, var1)
        c = Clip(b, zero, six)
        d = Conv<group = 4, pads = [1, 1, 1, 1]>(c, deep, deep_b)
        e = Clip(d, zero, six)
        s = GlobalAveragePool(e)
        t = Conv(s, gate, gate_b)
        u = HardSigmoid(t)
        v = Mul(e, u)
        f = Conv(v, point, point_b)
        g = HardSwish(f)
        h = AveragePool<kernel_shape = [2, 2], strides = [2, 2]>(g)
        i = Concat<axis = 1>(h, h)
        j = ReduceMean<axes = [2, 3], keepdims = 0>(i)
        k = MatMul(j, head)
        y = Softmax(k)
    """
    weights = {"stem": (4, 3, 3, 3), "deep": (4, 1, 3, 3), "deep_b": (4,), "gate": (4, 4, 1, 1), "gate_b": (4,),
               "point": (4, 4, 1, 1), "point_b": (4,), "head": (8, 5), "zero": number(0),
               "six": number(6), **normalised(1, 4)}
    return model("(float[N, 3, 6, 6] x) => (float[N, 5] y)", body, weights, opset)


def transformer(opset=13, hidden=4, heads=2):
    """A sentence encoder of one layer, as exporters write it: masks of numbers, sizes from the graph, the error function."""
    def norm(out, of, n):
        if opset >= 17:
            return f"{out} = LayerNormalization<axis = -1, epsilon = 1e-5>({of}, ns{n}, nb{n})\n"
        return f"""
            m{n} = ReduceMean<axes = [-1]>({of})
            c{n} = Sub({of}, m{n})
            p{n} = Pow(c{n}, two)
            v{n} = ReduceMean<axes = [-1]>(p{n})
            e{n} = Add(v{n}, tiny)
            r{n} = Sqrt(e{n})
            d{n} = Div(c{n}, r{n})
            t{n} = Mul(d{n}, ns{n})
            {out} = Add(t{n}, nb{n})
        """

    def head(kind, perm):
        return f"""
            {kind}m = MatMul(x0, w_{kind})
            {kind}b = Add(b_{kind}, {kind}m)
            {kind}s = Reshape({kind}b, apart)
            {kind} = Transpose<perm = {perm}>({kind}s)
        """

    body = f"""
        words = Gather(table, input_ids)
        sizes = Shape(input_ids)
        length = Gather(sizes, first)
        length1 = Unsqueeze(length, axis0)
        places = Slice(positions, axis0, length1, axis0)
        embedded = Add(words, places)
        {norm("x0", "embedded", 0)}
        u1 = Unsqueeze(attention_mask, axis1)
        u2 = Unsqueeze(u1, axis2)
        f1 = Cast<to = 1>(u2)
        f2 = Sub(one, f1)
        bias = Mul(f2, far)
        {head("q", [0, 2, 1, 3])}
        {head("k", [0, 2, 3, 1])}
        {head("v", [0, 2, 1, 3])}
        qk = MatMul(q, k)
        scaled = Div(qk, root)
        masked = Add(scaled, bias)
        shares = Softmax<axis = -1>(masked)
        mixed = MatMul(shares, v)
        back = Transpose<perm = [0, 2, 1, 3]>(mixed)
        joined = Reshape(back, together)
        om = MatMul(joined, w_o)
        ob = Add(b_o, om)
        sum1 = Add(ob, x0)
        {norm("x1", "sum1", 1)}
        g1 = MatMul(x1, w_up)
        g2 = Add(b_up, g1)
        g3 = Div(g2, sqrt2)
        g4 = Erf(g3)
        g5 = Add(g4, one)
        g6 = Mul(g2, g5)
        g7 = Mul(g6, half)
        g8 = MatMul(g7, w_down)
        g9 = Add(b_down, g8)
        sum2 = Add(g9, x1)
        {norm("tokens", "sum2", 2)}
        token = Gather<axis = 1>(tokens, first0)
        pooled = Gemm(token, w_pool, b_pool)
        y = Tanh(pooled)
    """
    weights = {"table": (12, hidden), "positions": (6, hidden), "first": number(1, numpy.int64), "first0": number(0, numpy.int64),
               "axis0": i64(0), "axis1": i64(1), "axis2": i64(2), "one": number(1), "far": number(-10000),
               "root": number((hidden / heads) ** 0.5), "apart": i64(0, 0, heads, hidden // heads),
               "together": i64(0, 0, hidden), "sqrt2": number(2 ** 0.5), "half": number(0.5),
               "w_up": (hidden, 2 * hidden), "b_up": (2 * hidden,), "w_down": (2 * hidden, hidden), "b_down": (hidden,),
               "w_pool": (hidden, 4), "b_pool": (4,)}
    if opset < 17:
        weights |= {"two": number(2), "tiny": number(1e-5)}
    for kind in "qkvo":
        weights |= {f"w_{kind}": (hidden, hidden), f"b_{kind}": (hidden,)}
    ramp = numpy.arange(hidden, dtype=numpy.float32)
    for n in range(3):
        weights |= {f"ns{n}": 1 + ramp / 20, f"nb{n}": ramp / 10 - 0.3}
    signature = f"(int64[N, S] input_ids, int64[N, S] attention_mask) => (float[N, 4] y, float[N, S, {hidden}] tokens)"
    return model(signature, body, weights, opset)


def recurrent(opset=14):
    """Two directions of an LSTM, a GRU behind it, the last state classified."""
    body = """
        s = Transpose<perm = [1, 0, 2]>(x)
        l, lh, lc = LSTM<hidden_size = 4, direction = "bidirectional">(s, lw, lr, lb)
        t = Transpose<perm = [0, 2, 1, 3]>(l)
        f = Reshape(t, flat)
        g, gh = GRU<hidden_size = 4, linear_before_reset = 1>(f, gw, gr, gb)
        h = Squeeze(gh, axis0)
        y = Gemm(h, head, bias)
    """
    weights = {"lw": (2, 16, 3), "lr": (2, 16, 4), "lb": (2, 32), "gw": (1, 12, 8), "gr": (1, 12, 4), "gb": (1, 24),
               "flat": i64(0, 0, -1), "axis0": i64(0), "head": (4, 5), "bias": (5,)}
    return model("(float[N, 5, 3] x) => (float[N, 5] y)", body, weights, opset)


def perceptron(opset=17, width=16):
    """Matrix products only."""
    body = "a = MatMul(x, w1) b = Relu(a) c = MatMul(b, w2) d = Add(c, b2) e = Tanh(d) y = MatMul(e, w3)"
    weights = {"w1": (width, width), "w2": (width, width), "b2": (width,), "w3": (width, 5)}
    return model(f"(float[N, {width}] x) => (float[N, 5] y)", body, weights, opset)


def blocked(opset=17):
    """Of all that ONNX Runtime computes in blocks of channels."""
    body = """
        a = Conv<pads = [1, 1, 1, 1]>(x, w1)
        b = Relu(a)
        c = Conv<pads = [1, 1, 1, 1], group = 16>(b, w2)
        d = Sigmoid(c)
        e = Mul(c, d)
        s = GlobalAveragePool(e)
        t = Conv(s, w7)
        u = Sigmoid(t)
        v = Mul(e, u)
        f = Conv(v, w3)
        g = HardSigmoid(f)
        h = Concat<axis = 1>(g, e)
        i = AveragePool<kernel_shape = [2, 2], strides = [2, 2], pads = [1, 1, 1, 1], count_include_pad = 1>(h)
        j = Conv(i, w4)
        k = Clip(j, low, high)
        l = Resize<mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor">(k, , scales)
        m = Conv(l, w5)
        n = Add(m, l)
        o = LeakyRelu<alpha = 0.3>(n)
        p = GlobalMaxPool(o)
        q = Conv(p, w6)
        r = Tanh(q)
        y = Flatten(r)
    """
    weights = {"w1": (16, 3, 3, 3), "w2": (16, 1, 3, 3), "w3": (16, 16, 1, 1), "w4": (4, 32, 1, 1), "w5": (4, 4, 1, 1),
               "w6": (5, 4, 1, 1), "w7": (16, 16, 1, 1), "low": number(0), "high": number(6), "scales": f32(1, 1, 2, 2)}
    return model("(float[N, 3, 6, 6] x) => (float[N, 5] y)", body, weights, opset)
