"""Random draws that are the same everywhere: they come from PCG64's raw output, which NumPy keeps in every version."""

from __future__ import annotations

import numpy as np


def generator(seed: int) -> np.random.PCG64:
    return np.random.PCG64(seed)


def indices(bits: np.random.PCG64, rows: int, n: int) -> np.ndarray:
    """[rows, n]: uniform draws from 0 … n−1."""
    # The upper 32 bits times n, shifted back, is an index below n; its bias is at most n/2³².
    index = ((bits.random_raw(rows * n) >> np.uint64(32)) * np.uint64(n)) >> np.uint64(32)
    return index.astype(np.intp).reshape(rows, n)


def signs(bits: np.random.PCG64, rows: int, n: int) -> np.ndarray:
    """[rows, n]: +1.0 or −1.0, one bit each."""
    words = -(-n // 64)
    raw = bits.random_raw(rows * words).astype("<u8").view(np.uint8).reshape(rows, 8 * words)
    return 1.0 - 2.0 * np.unpackbits(raw, axis=1, count=n, bitorder="little")


def uniforms(bits: np.random.PCG64, rows: int, n: int) -> np.ndarray:
    """[rows, n]: uniform on [0, 1), 53 bits each."""
    return (bits.random_raw(rows * n) >> np.uint64(11)).astype(np.float64).reshape(rows, n) / 2.0**53


def blocks(total: int, width: int) -> list[int]:
    """Sizes of the pieces in which `total` rows of `width` numbers are worked on, so that memory stays small."""
    step = max(1, 1_000_000 // max(1, width))
    return [min(step, total - start) for start in range(0, total, step)]
