"""Networks as PyTorch's users write them, as PyTorch's exporters give them.

Answers JSON lines on stdin. `{}` gives the networks' names and PyTorch's
version. `{"network", "exporter", "file"}` exports one and gives its loss.
`{"network", "forward", "gradients", "trained"}` compares gradients of one
batch: those of the graph in the file `gradients`, run by stock ONNX Runtime,
and PyTorch's in f32, each with PyTorch's in f64, and gives the worst relative
error of any weight that has a gradient. Where rounding tips a Relu, which
changes all gradients before it by a step, on either side, the error says
nothing of the rules: each weight counts with its best batch, and there are
more batches, up to a limit, while that leaves a step. Weights of `trained` are found in the
file `forward` and matched with the module's by their values, which are
random, in whatever layout and order the exporter left them.
"""

import contextlib
import functools
import itertools
import json
import logging
import sys
import warnings

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn as nn
import torch.nn.functional as F
import torchvision.models as vision
from onnx import numpy_helper

CLASSES = 10
BATCHES = range(2, 7)
# Errors above this are steps: those of rounding alone stay below it.
STEP = 1e-4


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(20, 64), nn.ReLU(), nn.BatchNorm1d(64), nn.Dropout(0.0),
            nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, CLASSES),
        )  # fmt: skip

    def forward(self, x):
        return self.layers(x)


class Recurrent(nn.Module):
    """Words, two recurrent layers in both directions, the last state."""

    def __init__(self, layer):
        super().__init__()
        self.words = nn.Embedding(100, 16)
        self.layers = layer(16, 24, num_layers=2, batch_first=True, bidirectional=True)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, words):
        found, _ = self.layers(self.words(words))
        return self.head(found[:, -1])


class Encoder(nn.Module):
    """BERT's encoder: padding (word 0) is masked, the first word classifies."""

    def __init__(self, own):
        super().__init__()
        self.words = nn.Embedding(100, 48, padding_idx=None)
        self.places = nn.Parameter(torch.zeros(1, 12, 48))
        self.norm = nn.LayerNorm(48)
        if own:
            self.layers = nn.ModuleList([Attention(48, 4) for _ in range(2)])
        else:
            layer = nn.TransformerEncoderLayer(48, 4, 96, dropout=0.0, activation="gelu", batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(48, CLASSES)

    def forward(self, words):
        padding = words == 0
        x = self.norm(self.words(words) + self.places[:, : words.shape[1]])
        if isinstance(self.layers, nn.ModuleList):
            for layer in self.layers:
                x = layer(x, padding)
        else:
            x = self.layers(x, src_key_padding_mask=padding)
        return self.head(torch.tanh(x[:, 0]))


class Attention(nn.Module):
    """A layer of attention as papers' code has it: one product for queries,
    keys and values, minus infinity where there is padding."""

    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.wide, self.narrow = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)

    def forward(self, x, padding):
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        scores = q @ k.transpose(-2, -1) / (width // self.heads) ** 0.5
        scores = scores.masked_fill(padding[:, None, None, :], float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        x = self.first(x + self.out(mixed))
        return self.second(x + self.narrow(F.gelu(self.wide(x), approximate="tanh")))


def twice(from_, to):
    return nn.Sequential(
        nn.Conv2d(from_, to, 3, padding=1, bias=False), nn.BatchNorm2d(to), nn.ReLU(inplace=True),
        nn.Conv2d(to, to, 3, padding=1, bias=False), nn.BatchNorm2d(to), nn.ReLU(inplace=True),
    )  # fmt: skip


class UNet(nn.Module):
    """Ronneberger et al., 2015, small; upwards by transposed convolution or
    by bilinear interpolation."""

    def __init__(self, bilinear):
        super().__init__()
        widths = [8, 16, 32]
        self.down = nn.ModuleList(twice(a, b) for a, b in zip([3, *widths], widths))
        self.deep = twice(32, 64)

        def up(from_, to):
            if bilinear:
                return nn.Sequential(
                    nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True), nn.Conv2d(from_, to, 1)
                )
            return nn.ConvTranspose2d(from_, to, 2, stride=2)

        self.up = nn.ModuleList(up(2 * w, w) for w in reversed(widths))
        self.join = nn.ModuleList(twice(2 * w, w) for w in reversed(widths))
        self.head = nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        kept = []
        for layer in self.down:
            kept.append(layer(x))
            x = F.max_pool2d(kept[-1], 2)
        x = self.deep(x)
        for up, join, other in zip(self.up, self.join, reversed(kept)):
            x = join(torch.cat([other, up(x)], 1))
        return self.head(x)


class ConvSilu(nn.Module):
    def __init__(self, from_, to, kernel=1, stride=1):
        super().__init__()
        self.conv = nn.Conv2d(from_, to, kernel, stride, kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(to, eps=1e-3, momentum=0.03)

    def forward(self, x):
        return F.silu(self.bn(self.conv(x)), inplace=True)


class C2f(nn.Module):
    def __init__(self, from_, to, count, shortcut):
        super().__init__()
        self.half, self.shortcut = to // 2, shortcut
        self.first, self.last = ConvSilu(from_, to), ConvSilu((2 + count) * self.half, to)
        one = lambda: nn.Sequential(ConvSilu(self.half, self.half, 3), ConvSilu(self.half, self.half, 3))
        self.blocks = nn.ModuleList(one() for _ in range(count))

    def forward(self, x):
        parts = list(self.first(x).chunk(2, 1))
        for block in self.blocks:
            found = block(parts[-1])
            parts.append(parts[-1] + found if self.shortcut else found)
        return self.last(torch.cat(parts, 1))


class Sppf(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = ConvSilu(width, width // 2), ConvSilu(2 * width, width)
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x):
        parts = [self.first(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.last(torch.cat(parts, 1))


class Yolo(nn.Module):
    """The shape of YOLOv8: C2f blocks, pyramid pooling, a neck that goes up
    and down again, and per scale 4 numbers of a box and the classes; all
    anchors in one output `[batch, 4 + classes, anchors]`."""

    def __init__(self):
        super().__init__()
        w = [8, 16, 32, 64, 128]
        self.stem = nn.Sequential(ConvSilu(3, w[0], 3, 2), ConvSilu(w[0], w[1], 3, 2), C2f(w[1], w[1], 1, True))
        self.third = nn.Sequential(ConvSilu(w[1], w[2], 3, 2), C2f(w[2], w[2], 2, True))
        self.fourth = nn.Sequential(ConvSilu(w[2], w[3], 3, 2), C2f(w[3], w[3], 2, True))
        self.fifth = nn.Sequential(ConvSilu(w[3], w[4], 3, 2), C2f(w[4], w[4], 1, True), Sppf(w[4]))
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.up = nn.ModuleList([C2f(w[4] + w[3], w[3], 1, False), C2f(w[3] + w[2], w[2], 1, False)])
        self.down = nn.ModuleList([ConvSilu(w[2], w[2], 3, 2), ConvSilu(w[3], w[3], 3, 2)])
        self.mix = nn.ModuleList([C2f(w[2] + w[3], w[3], 1, False), C2f(w[3] + w[4], w[4], 1, False)])
        head = lambda n, out: nn.Sequential(ConvSilu(n, 16, 3), nn.Conv2d(16, out, 1))
        self.boxes = nn.ModuleList(head(n, 4) for n in w[2:])
        self.classes = nn.ModuleList(head(n, CLASSES) for n in w[2:])

    def forward(self, x):
        third = self.third(self.stem(x))
        fourth = self.fourth(third)
        fifth = self.fifth(fourth)
        fourth = self.up[0](torch.cat([self.upsample(fifth), fourth], 1))
        third = self.up[1](torch.cat([self.upsample(fourth), third], 1))
        fourth = self.mix[0](torch.cat([self.down[0](third), fourth], 1))
        fifth = self.mix[1](torch.cat([self.down[1](fourth), fifth], 1))
        scales = zip([third, fourth, fifth], self.boxes, self.classes)
        found = [torch.cat([box(x), kinds(x)], 1).flatten(2) for x, box, kinds in scales]
        boxes, kinds = torch.cat(found, 2).split([4, CLASSES], 1)
        return torch.cat([boxes, kinds.sigmoid()], 1)


def vgg():
    """With the head that its users give it for small pictures."""
    net = vision.vgg11_bn(num_classes=CLASSES, dropout=0.0)
    net.avgpool = nn.AdaptiveAvgPool2d(1)
    net.classifier = nn.Sequential(nn.Linear(512, 128), nn.ReLU(), nn.Dropout(0.0), nn.Linear(128, CLASSES))
    return net


def picture(size, count=4):
    return lambda rng: torch.from_numpy(rng.random((count, 3, size, size), dtype=np.float32))


def words(rng):
    found = rng.integers(1, 100, (4, 12))
    # Sentences of different lengths, padded.
    for row, length in enumerate([12, 7, 9, 4]):
        found[row, length:] = 0
    return torch.from_numpy(found)


def numbers(rng):
    return torch.from_numpy(rng.standard_normal((8, 20), dtype=np.float32))


def of(kind, **more):
    return lambda: kind(num_classes=CLASSES, **more)


SMALL_VIT = dict(image_size=64, patch_size=16, num_layers=3, num_heads=4, hidden_dim=64, mlp_dim=128)
SMALL_SWIN = dict(
    patch_size=[4, 4], embed_dim=24, depths=[2, 2], num_heads=[2, 4], window_size=[4, 4], stochastic_depth_prob=0.0
)

# Name: module, batch, loss.
NETWORKS = {
    "resnet18": (of(vision.resnet18), picture(64), "cross-entropy"),
    "mobilenet_v2": (of(vision.mobilenet_v2, dropout=0.0), picture(64), "cross-entropy"),
    "mobilenet_v3_small": (of(vision.mobilenet_v3_small, dropout=0.0), picture(64), "cross-entropy"),
    "efficientnet_b0": (of(vision.efficientnet_b0, dropout=0.0, stochastic_depth_prob=0.0), picture(64), "cross-entropy"),
    "vgg11_bn": (vgg, picture(64), "cross-entropy"),
    "densenet121": (of(vision.densenet121), picture(64), "cross-entropy"),
    "convnext_tiny": (of(vision.convnext_tiny, stochastic_depth_prob=0.0), picture(32), "cross-entropy"),
    "vit": (of(vision.VisionTransformer, **SMALL_VIT), picture(64), "cross-entropy"),
    "transformer_encoder": (lambda: Encoder(False), words, "cross-entropy"),
    "bert": (lambda: Encoder(True), words, "cross-entropy"),
    "lstm": (lambda: Recurrent(nn.LSTM), words, "cross-entropy"),
    "gru": (lambda: Recurrent(nn.GRU), words, "cross-entropy"),
    "mlp": (Mlp, numbers, "cross-entropy"),
    "unet_transposed": (lambda: UNet(False), picture(32), "cross-entropy"),
    "unet_bilinear": (lambda: UNet(True), picture(32), "cross-entropy"),
    "yolo": (Yolo, picture(64), "mse"),
    "swin": (of(vision.SwinTransformer, **SMALL_SWIN), picture(64), "cross-entropy"),
    "shufflenet_v2": (of(vision.shufflenet_v2_x0_5), picture(64), "cross-entropy"),
    "squeezenet": (of(vision.squeezenet1_1, dropout=0.0), picture(64), "cross-entropy"),
    "regnet_y_400mf": (of(vision.regnet_y_400mf), picture(64), "cross-entropy"),
}


def made(name, seed=0):
    """The module, in training mode, and a batch."""
    torch.manual_seed(1)
    build, inputs, loss = NETWORKS[name]
    module = build().train()
    # No two weights are alike, so values tell them apart.
    with torch.no_grad():
        for weight in module.parameters():
            weight += 0.02 * torch.randn_like(weight)
    rng = np.random.default_rng(seed)
    x = inputs(rng)
    shape = module.eval()(x).shape
    module.train()
    if loss == "mse":
        y = torch.from_numpy(rng.random(shape, dtype=np.float32))
    else:
        y = torch.from_numpy(rng.integers(0, CLASSES, [shape[0], *shape[2:]]))
    return module, x, y, loss


def newest(module, x, path, **more):
    batch = torch.export.Dim("batch", min=2, max=1024)
    more |= dict(dynamo=True, dynamic_shapes=({0: batch},), external_data=False, verbose=False)
    torch.onnx.export(module, (x,), path, input_names=["x"], **more)


def legacy(module, x, path):
    torch.onnx.export(
        module, (x,), path, dynamo=False, input_names=["x"], dynamic_axes={"x": {0: "batch"}},
        training=torch.onnx.TrainingMode.TRAINING, do_constant_folding=False,
    )  # fmt: skip


EXPORTERS = {
    # As it comes; it merges normalisations into the convolutions before them.
    "newest": newest,
    "newest, unoptimised": lambda *a: newest(*a, optimize=False),
    "legacy": legacy,
}


def export(network, exporter, file):
    module, x, _, loss = made(network)
    if exporter == "newest" and any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in module.modules()):
        return {"other": "its normalisations are merged away"}
    try:
        with contextlib.redirect_stdout(sys.stderr):
            EXPORTERS[exporter](module, x, file)
    except Exception as error:
        return {"failure": f"{type(error).__name__}: {error}".splitlines()[0]}
    return {"loss": loss}


@functools.lru_cache(maxsize=BATCHES.stop)
def exact(network, seed):
    """Weights, gradients in f64 and in f32, and the batch."""
    found = []
    for dtype in (torch.float64, torch.float32):
        module, x, y, loss = made(network, seed)
        weights = {n: p.detach().numpy().copy() for n, p in module.named_parameters()}
        module = module.to(dtype)
        output = module(x.to(dtype) if x.is_floating_point() else x)
        (F.mse_loss(output, y.to(dtype)) if loss == "mse" else F.cross_entropy(output, y)).backward()
        found.append({n: p.grad.numpy() for n, p in module.named_parameters() if p.grad is not None})
    return {n: weights[n] for n in found[0]}, *found, x.numpy(), y.numpy()


def place(name, value, weights):
    """Where a weight of the file is in the module: names, and a function that
    lays the module's tensors out as the file does; None if it isn't there."""
    first = [name] if name in weights else []
    for other in first + [n for n, w in weights.items() if w.size == value.size and n != name]:
        for order in itertools.permutations(range(weights[other].ndim)):
            if np.array_equal(weights[other].transpose(order).reshape(-1), value.reshape(-1)):
                return {other}, lambda of: of[other].transpose(order).reshape(value.shape)
    # Gates of recurrent layers are joined, in another order: row by row.
    for width in {value.shape[-1] if value.ndim else 1, 1}:
        alike = {n: w for n, w in weights.items() if w.ndim <= 2 and (w.shape[-1] if w.ndim == 2 else 1) == width}
        rows = {}
        for n, w in alike.items():
            for i, row in enumerate(w.reshape(-1, width)):
                rows.setdefault(row.tobytes(), []).append((n, i))
        found = [rows.get(row.tobytes(), []) for row in value.reshape(-1, width)]
        if all(len(places) == 1 for places in found):
            found = [places[0] for places in found]
            lay = lambda of: np.stack([of[n].reshape(-1, width)[i] for n, i in found]).reshape(value.shape)
            return {n for n, _ in found}, lay
    return None


def compare(network, forward, gradients, trained):
    weights = exact(network, 0)[0]
    graph = onnx.load(forward).graph
    values = {t.name: numpy_helper.to_array(t) for t in graph.initializer if t.name in set(trained)}
    places = {name: place(name, values[name], weights) for name in trained}
    there = {name: found for name, found in places.items() if found}
    seen = set().union(*(names for names, _ in there.values()))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(gradients, options, providers=["CPUExecutionProvider"])
    ours, theirs = {}, {}
    for seed in range(BATCHES.stop):
        if seed >= BATCHES.start and max(*ours.values(), *theirs.values()) < STEP:
            break
        _, double, single, x, y = exact(network, seed)
        made = dict(zip(trained, session.run(None, {"x": x, "target": y})))
        largest = max(np.linalg.norm(g) for g in double.values())
        for name, (_, lay) in there.items():
            right = lay(double)
            size = np.linalg.norm(right)
            # Biases in front of a normalisation have no gradient but rounding.
            if size > 1e-9 * largest:
                for best, found in ((ours, made[name]), (theirs, lay(single))):
                    best[name] = min(best.get(name, np.inf), float(np.linalg.norm(found - right) / size))
    worst = max(ours, key=ours.get)
    return {
        "ours": ours[worst],
        "pytorch": max(theirs.values()),
        "weight": worst,
        "weights": len(weights),
        "missing": [n for n in weights if n not in seen],
        "unknown": [n for n in trained if n not in there],
    }


warnings.simplefilter("ignore")
logging.disable(logging.WARNING)
for line in sys.stdin:
    request = json.loads(line)
    if "exporter" in request:
        answer = export(**request)
    elif request:
        answer = compare(**request)
    else:
        answer = {"version": torch.__version__, "networks": list(NETWORKS), "exporters": list(EXPORTERS)}
    print(json.dumps(answer), flush=True)
