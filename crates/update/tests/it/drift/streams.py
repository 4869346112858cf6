"""Writes streams.json: what river and frouros say of seeded streams.

    python streams.py > streams.json

with river 0.23, typing_extensions, frouros 0.9. A stream is a seed and parts;
`values` here and `values` in streams.rs draw the same numbers.

Two reference detectors are changed before they run. river's exponential mean
begins anew whenever it is 0; `hddm-w` here is river's detector with a mean that
begins once (`hddm-w as it is` is recorded beside it). KSWIN draws from its
window with the generator of the project in place of Python's.
"""

import json
import sys

from frouros.detectors import concept_drift as frouros
from river import drift, stats
from river.drift import binary
from river.drift.binary import hddm_w

MASK = (1 << 64) - 1


class SplitMix:
    def __init__(self, seed):
        self.state = seed & MASK

    def bits(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return z ^ (z >> 31)

    def uniform(self):
        return (self.bits() >> 11) / (1 << 53)

    def sample(self, population, k):
        items = list(population)
        for i in range(k):
            j = i + ((self.bits() * (len(items) - i)) >> 64)
            items[i], items[j] = items[j], items[i]
        return items[:k]


def values(stream):
    """Bernoulli(p) or normal-like (twelve uniforms) numbers, part by part; `to`
    moves p or the mean linearly over the part."""
    draw = SplitMix(stream["seed"])
    for part in stream["parts"]:
        n, begin = part["n"], part["from"]
        step = (part.get("to", begin) - begin) / n
        for i in range(n):
            level = begin + step * i
            if part["kind"] == "errors":
                yield 1.0 if draw.uniform() < level else 0.0
            elif part["kind"] == "numbers":
                total = 0.0
                for _ in range(12):
                    total += draw.uniform()
                yield level + part["deviation"] * (total - 6.0)
            else:
                yield level


def errors(n, begin, to=None):
    return {"kind": "errors", "n": n, "from": begin} | ({} if to is None else {"to": to})


def numbers(n, begin, to=None, deviation=1.0):
    part = {"kind": "numbers", "n": n, "from": begin, "deviation": deviation}
    return part | ({} if to is None else {"to": to})


def constant(n, level):
    return {"kind": "constant", "n": n, "from": level}


STREAMS = []
for seed in range(5):
    STREAMS += [
        {"name": "errors, abrupt", "seed": seed, "parts": [errors(1000, 0.2), errors(1000, 0.5)]},
        {"name": "errors, gradual", "seed": seed, "parts": [errors(1000, 0.1), errors(1000, 0.1, 0.5), errors(500, 0.5)]},
        {"name": "errors, fewer", "seed": seed, "parts": [errors(1000, 0.5), errors(1000, 0.2)]},
        {"name": "numbers, abrupt", "seed": seed, "parts": [numbers(1000, 0.0), numbers(1000, 1.0)]},
        {"name": "numbers, gradual", "seed": seed, "parts": [numbers(1000, 0.0), numbers(1000, 0.0, 1.5), numbers(500, 1.5)]},
        {"name": "numbers, wider", "seed": seed, "parts": [numbers(1000, 0.0), numbers(1000, 0.0, deviation=3.0)]},
    ]
for seed in range(100, 103):
    STREAMS += [
        {"name": "errors, none", "seed": seed, "parts": [errors(20000, 0.2)]},
        {"name": "errors, none and few", "seed": seed, "parts": [errors(20000, 0.02)]},
        {"name": "numbers, none", "seed": seed, "parts": [numbers(20000, 0.0)]},
    ]
STREAMS += [
    {"name": "errors, constant 0", "seed": 0, "parts": [constant(5000, 0.0)]},
    {"name": "errors, constant 1", "seed": 0, "parts": [constant(5000, 1.0)]},
    {"name": "errors, 0 then 1", "seed": 0, "parts": [constant(1000, 0.0), constant(1000, 1.0)]},
    {"name": "errors, one", "seed": 0, "parts": [constant(1000, 0.0), constant(1, 1.0), constant(999, 0.0)]},
    {"name": "numbers, constant", "seed": 0, "parts": [constant(5000, 0.1)]},
    {"name": "numbers, large", "seed": 9, "parts": [numbers(2000, 1e9), numbers(2000, 1e9 + 2)]},
]


class Mean:
    """river's EWMean, but begun once."""

    def __init__(self, factor):
        self.factor, self.mean = factor, None

    def update(self, x):
        self.mean = x if self.mean is None else self.factor * x + (1 - self.factor) * self.mean

    def get(self):
        return 0.0 if self.mean is None else self.mean


class Kswin(drift.KSWIN):
    def _reset(self):
        super()._reset()
        self._rng = SplitMix(self.seed)


def hddm(**options):
    def run(stream):
        river_mean = stats.EWMean
        hddm_w.stats.EWMean = Mean
        try:
            return river(lambda: binary.HDDM_W(**options))(stream)
        finally:
            hddm_w.stats.EWMean = river_mean

    return run


def river(make):
    def run(stream):
        detector, drifts, warnings = make(), [], 0
        for i, x in enumerate(values(stream)):
            detector.update(x)
            if detector.drift_detected:
                drifts.append(i)
            elif getattr(detector, "warning_detected", False):
                warnings += 1
        return {"drifts": drifts, "warnings": warnings}

    return run


def of_frouros(make):
    def run(stream):
        detector = make()
        for i, x in enumerate(values(stream)):
            # frouros' ADWIN refuses negative sums; the test is about differences.
            detector.update(value=x + 20.0 if make is frouros.ADWIN else x)
            if detector.drift:
                return i
        return None

    return run


ERRORS = {
    "ddm": river(binary.DDM),
    "eddm": river(binary.EDDM),
    "hddm-a": river(binary.HDDM_A),
    "hddm-w": hddm(),
    "hddm-w as it is": river(binary.HDDM_W),
    "hddm-a, two-sided": river(lambda: binary.HDDM_A(two_sided_test=True)),
    "hddm-w, two-sided": hddm(two_sided_test=True),
}
NUMBERS = {
    "adwin": river(drift.ADWIN),
    "page-hinkley": river(drift.PageHinkley),
    "kswin": river(lambda: Kswin(seed=7)),
    "adwin, others": river(lambda: drift.ADWIN(delta=0.05, clock=1, max_buckets=3, min_window_length=20, grace_period=100)),
    "page-hinkley, others": river(lambda: drift.PageHinkley(min_instances=100, delta=0.02, threshold=20, alpha=0.99, mode="up")),
    "kswin, others": river(lambda: Kswin(alpha=0.0001, window_size=200, stat_size=50, seed=7)),
}
FROUROS_ERRORS = {"ddm": frouros.DDM, "eddm": frouros.EDDM, "hddm-a": frouros.HDDMA, "hddm-w": frouros.HDDMW}
FROUROS_NUMBERS = {"adwin": frouros.ADWIN, "page-hinkley": frouros.PageHinkley}


def main():
    rows = []
    for stream in STREAMS:
        methods, others = dict(NUMBERS), dict(FROUROS_NUMBERS)
        if stream["name"].startswith("errors"):
            methods |= ERRORS
            others |= FROUROS_ERRORS
        row = dict(stream)
        row["river"] = {name: run(stream) for name, run in methods.items()}
        row["frouros"] = {name: of_frouros(make)(stream) for name, make in others.items()}
        rows.append(row)
        print(stream["name"], stream["seed"], file=sys.stderr)
    print("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]")


main()
