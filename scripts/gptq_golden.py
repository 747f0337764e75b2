"""Makes tests/golden/gptq.json: round-to-nearest and GPTQ on a small layer, in NumPy.

    python3 scripts/gptq_golden.py > tests/golden/gptq.json        (needs numpy)

Written from the papers' definitions and independently of the Rust code: explicit inverse of the
Hessian, one column at a time, the inverse shrunk by elimination after each. Inputs are small
integers, so that sums over tokens are exact, and weights are multiples of 1/1024.
"""

import json

import numpy as np

ROWS, INPUTS, TOKENS = 16, 64, 96
BITS, GROUP, DAMPING = 4, 32, 0.01
TOP = 2**BITS - 1


def grid(weights):
    """FP16 scale and whole zero per row, from the range of `weights` that includes 0."""
    low = np.minimum(weights.min(axis=1), 0)
    high = np.maximum(weights.max(axis=1), 0)
    scale = ((high - low) / TOP).astype(np.float16).astype(np.float64)
    zero = np.clip(np.rint(-low / scale), 0, TOP)
    return scale, zero


def nearest(column, scale, zero):
    return np.clip(np.rint(column / scale) + zero, 0, TOP)


def solve(weight, inverse=None, order=None):
    """GPTQ with the inverse Hessian `inverse`; round-to-nearest when that is None.

    With an `order` columns are taken so, on grids of the groups as they were; without one they
    keep theirs, and a grid is fitted when its group is reached.
    """
    w = weight.copy()
    codes = np.zeros_like(w)
    scales, zeros = (list(v) for v in zip(*(grid(w[:, i : i + GROUP]) for i in range(0, INPUTS, GROUP))))
    for i in range(INPUTS) if order is None else order:
        g = i // GROUP
        if order is None and i % GROUP == 0:
            scales[g], zeros[g] = grid(w[:, i : i + GROUP])
        codes[:, i] = nearest(w[:, i], scales[g], zeros[g])
        if inverse is None:
            continue
        error = (w[:, i] - scales[g] * (codes[:, i] - zeros[g])) / inverse[i, i]
        # What is done has been eliminated: its entries are zero but for rounding, and its weights
        # are not looked at again.
        w -= np.outer(error, inverse[i, :])
        inverse = inverse - np.outer(inverse[:, i], inverse[i, :]) / inverse[i, i]
    return {
        "codes": codes.astype(int).tolist(),
        "scales": np.stack(scales, axis=1).tolist(),
        "zeros": np.stack(zeros, axis=1).astype(int).tolist(),
    }


random = np.random.default_rng(20221031)
mixing = random.normal(size=(6, INPUTS))
inputs = np.rint(4 * random.normal(size=(TOKENS, 6)) @ mixing + 2 * random.normal(size=(TOKENS, INPUTS)))
inputs[:, 17] = 0  # a dead input
weight = np.rint(1024 * 0.3 * random.normal(size=(ROWS, INPUTS))) / 1024

hessian = inputs.T @ inputs
order = np.argsort(-np.diag(hessian), kind="stable")  # the dead input last
mean = np.diag(hessian).mean()
hessian[17, 17] = 1
hessian += DAMPING * mean * np.eye(INPUTS)

print(
    json.dumps(
        {
            "version": 2,
            "made_by": "scripts/gptq_golden.py, numpy " + np.__version__,
            "group_size": GROUP,
            "bits": BITS,
            "weight": weight.tolist(),
            "inputs": inputs.astype(int).tolist(),
            "rtn": solve(weight),
            "gptq": solve(weight, np.linalg.inv(hessian), order),
            "gptq-noao": solve(weight, np.linalg.inv(hessian)),
        }
    )
)
