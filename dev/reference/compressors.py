"""What EF21's messages become (arXiv 2510.00643): contractive compressors of one matrix, in NumPy and float64.

A vector is one column. Numbers are rounded to powers of two by `natural`, and by all others whose settings say "natural":
the values that are sent, be it a whole block, some elements or columns, or the factors of a low rank.
"""

import math
import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import stages  # noqa: E402


def natural(x):
    """To the nearest power of two with the sign of x; the middle of two goes up."""
    mantissa, exponent = np.frexp(x)  # x = mantissa 2^exponent, 1/2 <= |mantissa| < 1
    return np.where(x == 0, 0.0, np.sign(x) * np.ldexp(0.5, exponent + (np.abs(mantissa) >= 0.75)))


def largest(values, fraction):
    """A mask of the largest, `fraction` of all rounded up; among equals those that come first."""
    count = math.ceil(fraction * values.size * (1 - 2**-50))  # a product that is whole but for rounding is whole
    mask = np.zeros(values.size, bool)
    mask[np.argsort(-values.reshape(-1), kind="stable")[:count]] = True
    return mask.reshape(values.shape)


def random_factor(seed, name, rank, columns):
    """[rank, columns], normal, of variance 1 / columns: Box and Muller's from the stream that a hash (FNV-1a) of the
    name numbers."""
    stream = 0xCBF29CE484222325
    for byte in name.encode():
        stream = (stream ^ byte) * 0x100000001B3 % 2**64

    def normal(index):
        words = stages.philox([index, 0, stream & 0xFFFFFFFF, stream >> 32], [seed & 0xFFFFFFFF, seed >> 32])
        first, second = ((((high << 32 | low) >> 11) + 0.5) / 2**53 for high, low in (words[:2], words[2:]))
        return math.sqrt(-2 * math.log(first)) * math.cos(2 * math.pi * second)

    return np.array([normal(i) for i in range(rank * columns)]).reshape(rank, columns) / columns**0.5


def orthonormal(x):
    """Gram-Schmidt of the columns."""
    q, r = np.linalg.qr(x)
    return q * np.where(np.diag(r) < 0, -1.0, 1.0)


class Compressor:
    """compressor(x, name, state) -> C(x); `state` is the sender's for this block."""

    def __init__(self, settings, seed):
        self.settings, self.type, self.seed = settings, settings["type"], seed
        self.rounded = natural if self.type == "natural" or settings.get("natural") else lambda x: x

    def __call__(self, x, name, state):
        m, n = x.shape
        if self.type == "topk":
            return np.where(largest(np.abs(x), self.settings["fraction"]), self.rounded(x), 0.0)
        if self.type == "columns":
            return np.where(largest((x * x).sum(0), self.settings["fraction"]), self.rounded(x), 0.0)
        if self.type == "rank":
            rank = min(self.settings["rank"], m, n)
            if rank * (m + n) < m * n:  # else the whole block is shorter
                return self.low_rank(x, name, rank, state)
        return self.rounded(x)

    def low_rank(self, x, name, rank, state):
        """One step of the power method from the right factor of the last message. If P is rounded, each row of Q in
        turn is what leaves least of X; rounded itself before the next."""
        if "factor" not in state:
            state["factor"] = random_factor(self.seed, name, rank, x.shape[1])
        p = self.rounded(orthonormal(x @ state["factor"].T))
        state["factor"] = p.T @ x
        if not self.settings.get("natural"):
            return p @ state["factor"]
        sent = np.zeros_like(x)
        for column in p.T:
            row = column @ (x - sent) / (column @ column)
            sent = sent + np.outer(column, natural(row))
        return sent
