"""What EF21's messages become (arXiv 2510.00643): contractive compressors of one matrix, in NumPy and float64.

A compressor is called with the block's matrix, whether it is a vector, the block's name and a dict that keeps its state.
"""

import math

import numpy as np


def natural(x):
    """To the nearest power of two with the sign of x; the middle of two goes up."""
    mantissa, exponent = np.frexp(x)  # x = mantissa 2^exponent, 1/2 <= |mantissa| < 1
    return np.where(x == 0, 0.0, np.sign(x) * np.ldexp(0.5, exponent + (np.abs(mantissa) >= 0.75)))


def count_of(fraction, size):
    return max(1, math.ceil(fraction * size))


def largest(values, count):
    """A mask of the `count` largest; among equals those that come first."""
    mask = np.zeros(values.size, bool)
    mask[np.argsort(-values.reshape(-1), kind="stable")[:count]] = True
    return mask.reshape(values.shape)


class Compressor:
    def __init__(self, settings, start_factor):
        self.type, self.settings, self.start_factor = settings["type"], settings, start_factor
        self.round = natural if settings.get("natural") else lambda x: x

    @property
    def is_identity(self):
        return self.type == "identity"

    def __call__(self, x, is_vector, name, state):
        if self.type == "identity" or is_vector and self.type in ("columns", "rank"):
            return x
        if self.type == "natural":
            return natural(x)
        if self.type == "topk":
            return np.where(largest(np.abs(x), count_of(self.settings["fraction"], x.size)), self.round(x), 0.0)
        if self.type == "columns":
            kept = largest((x * x).sum(0), count_of(self.settings["fraction"], x.shape[1]))
            return np.where(kept, self.round(x), 0.0)
        assert self.type == "rank", self.type
        return self.low_rank(x, name, state)

    def low_rank(self, x, name, state):
        """One step of the power method from the right factor of the last message."""
        rank = min(self.settings["rank"], *x.shape)
        if "factor" not in state:
            state["factor"] = self.start_factor(name, x.shape[1], rank)
        left, _ = np.linalg.qr(x @ state["factor"])
        state["factor"] = x.T @ left
        return self.round(left) @ self.round(state["factor"]).T
