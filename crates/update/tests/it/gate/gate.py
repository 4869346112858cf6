"""Writes gate.json: what scipy says of paired answers and losses.

    python gate.py > gate.json

with scipy 1.14. Tango's score has no function there: it is computed from its
definition, the likelihood under a given difference maximised by brute force.
"""

import json

import numpy as np
from scipy import optimize, stats

CASES = [
    (50, 10, 2, 8),
    (900, 30, 30, 40),
    (900, 0, 0, 100),
    (1000, 0, 0, 0),
    (0, 5, 0, 0),
    (0, 0, 7, 0),
    (430, 41, 22, 7),
    (8000, 300, 410, 1290),
    (0, 3, 4, 0),
]


def score(answers, difference):
    both, gained, lost, neither = answers
    n = sum(answers)

    def cost(share):
        # Shares: only new = share + difference, only old = share, the rest.
        cells = [(gained, share + difference), (lost, share), (both + neither, 1 - 2 * share - difference)]
        return -sum(k * np.log(max(p, 1e-300)) for k, p in cells if k > 0)

    low, high = max(0.0, -difference), min(1.0, (1 - difference) / 2)
    best = optimize.minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-13})
    ends = min(((cost(s), s) for s in (low, best.x, high)))
    variance = n * (2 * ends[1] + difference - difference**2)
    return (gained - lost - n * difference) / np.sqrt(variance) if variance > 1e-12 else None


def bound(answers, z):
    difference = (answers[1] - answers[2]) / sum(answers)
    f = lambda d: score(answers, d) - z
    a, b = (-1 + 1e-9, difference - 1e-7) if z > 0 else (difference + 1e-7, 1 - 1e-9)
    return optimize.brentq(f, a, b, xtol=1e-12)


def answers():
    rows = []
    z = stats.norm.isf(0.05)
    for case in CASES:
        _, gained, lost, _ = case
        p = stats.binomtest(gained, gained + lost, 0.5, alternative="greater").pvalue if gained + lost else 1.0
        rows.append(
            {
                "answers": case,
                "mcnemar": float(p),
                "score": [[d, score(case, d)] for d in (-0.2, -0.01, 0.03)],
                "low": bound(case, z) if lost < sum(case) else None,
                "high": bound(case, -z) if gained < sum(case) else None,
            }
        )
    return rows


def losses():
    rows = []
    for seed, n, shift in ((1, 20, 0.0), (2, 200, 0.1), (3, 5, -0.5)):
        draw = np.random.default_rng(seed)
        old = np.round(draw.gamma(2.0, 0.5, n), 6)
        new = np.round(old - shift + draw.normal(0, 0.3, n), 6)
        for required in (0.0, -0.02):
            test = stats.ttest_1samp(old - new, required, alternative="greater")
            interval = stats.ttest_1samp(old - new, required).confidence_interval(0.9)
            rows.append(
                {
                    "old": old.tolist(),
                    "new": new.tolist(),
                    "required": required,
                    "p": float(test.pvalue),
                    "low": float(interval.low),
                    "high": float(interval.high),
                }
            )
    return rows


print(json.dumps({"answers": answers(), "losses": losses()}))
