"""Writes windows.json: what scipy and frouros say of windows beside a reference.

    python windows.py > windows.json

with scipy 1.14, frouros 0.9. `SplitMix` and the samples are those of
windows.rs.
"""

import json
from functools import partial

import numpy as np
from frouros.detectors.data_drift import MMD
from frouros.utils.kernels import rbf_kernel
from scipy import optimize, stats

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


def bell(draw):
    total = 0.0
    for _ in range(12):
        total += draw.uniform()
    return total - 6.0


def sample(seed, n, shift, scale):
    """Rows of four: bell-shaped, one cut off at 0, whole numbers, constant."""
    draw, rows = SplitMix(seed), []
    for _ in range(n):
        x, y, z = bell(draw), bell(draw), bell(draw)
        rows.append([shift + scale * x, max(0.0, y + shift), float(np.floor(2 * z + shift)), 0.25])
    return np.array(rows)


CASES = [
    {"name": "same", "seed": 2, "n": 300, "shift": 0.0, "scale": 1.0},
    {"name": "shifted", "seed": 3, "n": 300, "shift": 0.3, "scale": 1.0},
    {"name": "wider", "seed": 4, "n": 250, "shift": 0.0, "scale": 2.0},
    {"name": "far", "seed": 5, "n": 60, "shift": 5.0, "scale": 1.0},
    {"name": "one", "seed": 6, "n": 1, "shift": 0.0, "scale": 1.0},
    {"name": "long", "seed": 7, "n": 3000, "shift": 0.05, "scale": 1.0},
]
REFERENCE = {"seed": 1, "n": 1000}


def grid(column, points=65):
    ordered = np.sort(column)
    n = len(ordered)
    return np.unique([ordered[i * (n - 1) // (points - 1)] for i in range(points)])


def code(at, column):
    """2 i between points, 2 i + 1 at point i."""
    i = np.searchsorted(at, column, side="left")
    hit = (i < len(at)) & (at[np.minimum(i, len(at) - 1)] == column)
    return 2 * i + hit


def windows():
    reference = sample(REFERENCE["seed"], REFERENCE["n"], 0.0, 1.0)
    rows = []
    for case in CASES:
        window = sample(case["seed"], case["n"], case["shift"], case["scale"])
        features = []
        for j in range(reference.shape[1]):
            a, b = reference[:, j], window[:, j]
            at = grid(a)
            method = "exact" if len(a) * len(b) <= 1 << 20 else "asymp"
            test = stats.ks_2samp(code(at, a), code(at, b), method=method)
            whole = stats.ks_2samp(a, b, method=method)
            features.append(
                {
                    "ks": test.statistic.item(),
                    "p": test.pvalue.item(),
                    "whole_ks": whole.statistic.item(),
                    "whole_p": whole.pvalue.item(),
                    "wasserstein": stats.wasserstein_distance(a, b),
                }
            )
        row = dict(case) | {"features": features}
        if case["n"] > 1:
            # frouros keeps the reference's half of the sum from its fit.
            detector = MMD(kernel=partial(rbf_kernel, sigma=1.5))
            detector.fit(X=reference)
            row["mmd"] = float(detector.compare(X=window)[0].distance)
        rows.append(row)
    return rows


def p_values():
    rows = []
    for n, m in ((1, 1), (3, 5), (30, 30), (50, 70), (500, 900), (1000, 1000), (5000, 700), (100000, 400), (2000, 3000)):
        lcm = n * m // np.gcd(n, m)
        for share in (0.02, 0.05, 0.1, 0.3, 0.8, 1.0):
            d = max(1, round(share * lcm)) / lcm
            exact = n * m <= 1 << 20
            # Two samples that lie d apart aren't needed: the distribution is.
            if exact:
                from scipy.stats._stats_py import _attempt_exact_2kssamp

                _, _, p = _attempt_exact_2kssamp(n, m, int(np.gcd(n, m)), d, "two-sided")
            else:
                big, small = float(max(n, m)), float(min(n, m))
                p = stats.distributions.kstwo.sf(d, np.round(big * small / (big + small)))
            rows.append({"n": n, "m": m, "distance": d, "exact": exact, "p": float(p)})
    return rows


def classes():
    rows = []
    for a, b in (([100, 200, 300], [20, 30, 70]), ([1000, 1000], [60, 40]), ([5000, 2500, 2500, 900], [50, 25, 25, 9])):
        test = stats.chi2_contingency([a, b], correction=False)
        rows.append({"reference": a, "window": b, "statistic": test.statistic.item(), "p": test.pvalue.item()})
    return rows


def calibration():
    """1,280 labelled confidences, twenty to a group, as isotonic regression sees
    the groups' shares."""
    draw, pairs = SplitMix(11), []
    for _ in range(1280):
        confidence = draw.uniform()
        pairs.append((confidence, draw.uniform() < 0.3 + 0.6 * confidence**2))
    pairs.sort()
    groups = [pairs[i : i + 20] for i in range(0, 1280, 20)]
    shares = np.array([sum(right for _, right in group) / 20 for group in groups])
    fitted = optimize.isotonic_regression(shares, weights=np.full(64, 20.0)).x
    return {"upto": [group[-1][0] for group in groups], "fitted": fitted.tolist()}


def main():
    document = {"windows": windows(), "p_values": p_values(), "classes": classes(), "calibration": calibration()}
    print(json.dumps(document))


main()
