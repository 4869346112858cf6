"""What learning without forgetting computes, by hand in NumPy and in double precision.

`python reference.py > reference.json`. A perceptron 3-4-3 with tanh: forward pass, gradients, and from them the diagonal
of the Fisher information, penalised, masked and traced steps of descent, importance by paths, and the loss with a
teacher's answers. Nothing here comes from the project's own code.
"""

import json

import numpy as np

rng = np.random.default_rng(14)
NAMES = ["w1", "b1", "w2", "b2"]
RATE, MOMENTUM = 0.1, 0.9


def weights():
    shapes = {"w1": (4, 3), "b1": (4,), "w2": (3, 4), "b2": (3,)}
    # As the model's file holds them.
    return {n: rng.normal(0, 0.6, s).astype(np.float32).astype(np.float64) for n, s in shapes.items()}


def f32(a):
    return np.asarray(a, np.float32).astype(np.float64)


def forward(p, x):
    h = np.tanh(x @ p["w1"].T + p["b1"])
    return h, h @ p["w2"].T + p["b2"]


def backward(p, x, h, dz):
    dh = (dz @ p["w2"]) * (1 - h * h)
    return {"w1": dh.T @ x, "b1": dh.sum(0), "w2": dz.T @ h, "b2": dz.sum(0)}


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cross_entropy(p, x, y):
    h, z = forward(p, x)
    s = softmax(z)
    n = len(y)
    loss = -np.log(s[np.arange(n), y]).mean()
    d = s.copy()
    d[np.arange(n), y] -= 1
    return loss, backward(p, x, h, d / n)


def distilled(p, x, y, said, temperature, weight):
    """Cross-entropy over rows with a class, and the divergence over rows of which a teacher says something, among the
    classes that it speaks of."""
    h, z = forward(p, x)
    s = softmax(z)
    d = np.zeros_like(z)
    loss = 0.0
    rows = [i for i, c in enumerate(y) if c >= 0]
    for i in rows:
        loss -= np.log(s[i, y[i]]) / len(rows)
        d[i] += s[i] / len(rows)
        d[i, y[i]] -= 1 / len(rows)
    spoken = [i for i in range(len(y)) if np.isfinite(said[i]).any()]
    for i in spoken:
        known = np.isfinite(said[i])
        t, m = softmax(said[i, known] / temperature), softmax(z[i, known] / temperature)
        loss += weight * temperature**2 * (t * (np.log(t) - np.log(m))).sum() / len(spoken)
        d[i, known] += weight * temperature * (m - t) / len(spoken)
    return loss, backward(p, x, h, d)


def flat(p):
    return {n: np.asarray(p[n]).ravel().tolist() for n in NAMES}


def steps(p, batches, stiffness=None, anchor=None, mask=None):
    """Descent with momentum. The penalty's gradient is added to the loss's, and the whole divided by one plus rate times
    stiffness; masks multiply what a weight moves by; paths sum minus the loss's gradient times that."""
    p = {n: p[n].copy() for n in NAMES}
    velocity = {n: np.zeros_like(p[n]) for n in NAMES}
    path = {n: np.zeros_like(p[n]) for n in NAMES}
    losses = []
    for x, y in batches:
        loss, g = cross_entropy(p, x, y)
        losses.append(loss)
        for n in NAMES:
            steered = g[n]
            if stiffness is not None:
                steered = (g[n] + stiffness[n] * (p[n] - anchor[n])) / (1 + RATE * stiffness[n])
            velocity[n] = MOMENTUM * velocity[n] + steered
            change = -RATE * velocity[n]
            if mask is not None:
                change = change * mask[n]
            path[n] -= g[n] * change
            p[n] = p[n] + change
    return {"losses": losses, "weights": flat(p), "path": flat(path)}, p, path


start = weights()
x = f32(rng.normal(0, 1, (12, 3)))
y = rng.integers(0, 3, 12)
batches = [(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)]

fisher = {n: np.zeros_like(start[n]) for n in NAMES}
for i in range(12):
    _, g = cross_entropy(start, x[i : i + 1], y[i : i + 1])
    for n in NAMES:
        fisher[n] += g[n] ** 2 / 12

# Stiffness over many orders of magnitude, zero among them.
stiffness = {n: f32(np.where(rng.random(start[n].shape) < 0.25, 0, 10 ** rng.uniform(-2, 4, start[n].shape))) for n in NAMES}
anchor = {n: f32(start[n] + rng.normal(0, 0.1, start[n].shape)) for n in NAMES}
mask = {n: (rng.random(start[n].shape) < 0.5).astype(np.float64) for n in NAMES}

plain, end, path = steps(start, batches)
held, _, _ = steps(start, batches, stiffness, anchor)
masked, _, _ = steps(start, batches, mask=mask)

damping = 0.01
first = {n: np.maximum(0, path[n] / ((end[n] - start[n]) ** 2 + damping)) for n in NAMES}
again, end2, path2 = steps(end, batches[::-1])
second = {n: np.maximum(0, first[n] + path2[n] / ((end2[n] - end[n]) ** 2 + damping)) for n in NAMES}

nothing = -np.inf
said = np.array(
    [[1.0, -0.5, 2.0], [0.5, 1.5, nothing], [nothing, nothing, nothing], [nothing, 0.25, nothing], [3.0, nothing, -3.0]]
)
lessons = []
for classes, answers in [
    (np.array([2, -100, 0, 1, -100]), said),
    (np.array([-100] * 5), said),
    (np.array([0, 1, 2, 1, 0]), np.full((5, 3), nothing)),
    (np.array([-100] * 5), np.full((5, 3), nothing)),
    (np.array([2, 1, 0, 1, 1]), np.where(np.isfinite(said), said, 0.5)),
]:
    loss, g = distilled(start, x[:5], classes, answers, 2.0, 0.7)
    lessons.append(
        {
            "classes": classes.tolist(),
            # What files and graphs hold in place of nothing.
            "said": np.where(np.isfinite(answers), answers, -1e30).tolist(),
            "loss": loss,
            "weights": flat({n: start[n] - RATE * g[n] for n in NAMES}),
        }
    )

print(
    json.dumps(
        {
            "start": flat(start),
            "features": x.tolist(),
            "classes": y.tolist(),
            "rate": RATE,
            "momentum": MOMENTUM,
            "fisher": flat(fisher),
            "stiffness": flat(stiffness),
            "anchor": flat(anchor),
            "mask": flat(mask),
            "plain": plain,
            "held": held,
            "masked": masked,
            "damping": damping,
            "importance": [flat(first), flat(second)],
            "end": flat(end),
            "again": again,
            "temperature": 2.0,
            "weight": 0.7,
            "lessons": lessons,
        },
        indent=None,
    )
)
