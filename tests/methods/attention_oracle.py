"""Attention of remembered queries in plain Python numbers, straight from the definition, for the tests' comparison."""

import math


def softmax(logits):
    if not logits:
        return []
    top = max(logits)
    powers = [math.exp(x - top) for x in logits]
    return [p / sum(powers) for p in powers]


def rows(e, layer, row, head, window, among=None, max_logits=False):
    """[G or 1][W][n] probabilities of a layer, sequence and KV head. among: index → bool."""
    dim, groups = e.geometry.head_dim, e.geometry.groups
    at = e.query_positions[row].tolist()[-window:]
    positions = e.positions[layer, row, head].tolist()
    keys = e.keys[layer, row, head].double().tolist()
    queries = e.queries[layer, row, head * groups : (head + 1) * groups].double().tolist()

    def logit(g, w, i):
        return sum(a * b for a, b in zip(queries[g][-window:][w], keys[i], strict=True)) / math.sqrt(dim)

    out = []
    for g in range(1 if max_logits else groups):
        out.append([])
        for w in range(window):
            seen = [
                i
                for i, p in enumerate(positions)
                if at[w] >= 0 and 0 <= p <= at[w] and (among is None or bool(among[i]))
            ]
            group = range(groups) if max_logits else [g]
            shares = softmax([max(logit(k, w, i) for k in group) for i in seen])
            line = [0.0] * len(positions)
            for i, share in zip(seen, shares, strict=True):
                line[i] = share
            out[-1].append(line)
    return out


def mean(e, layer, row, head, window, among=None, max_logits=False):
    """[n]: the rows' mean over the query heads and over the queries that exist."""
    lines = rows(e, layer, row, head, window, among, max_logits)
    existing = sum(p >= 0 for p in e.query_positions[row].tolist()[-window:])
    n = len(lines[0][0])
    return [sum(line[i] for group in lines for line in group) / len(lines) / max(1, existing) for i in range(n)]


def pool(scores, mask, kernel, pooling):
    """[n], 0 outside the mask."""
    half, out = kernel // 2, []
    for i, live in enumerate(mask):
        near = [scores[j] for j in range(i - half, i + half + 1) if 0 <= j < len(scores) and mask[j]]
        out.append(0.0 if not live else max(near) if pooling == "max" else sum(near) / kernel)
    return out


def every(e):
    """(layer, row, head) of all."""
    layers, count, heads, _ = e.positions.shape
    return [(i, r, h) for i in range(layers) for r in range(count) for h in range(heads)]
