"""One event of CASK for one sequence in plain Python, written from its description (cask.md §1.3–1.5)."""

from __future__ import annotations

import math


def clip(x, low, high):
    return max(low, min(high, x))


def softplus(x):
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


def cosine(a, b):
    na, nb = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(x * x for x in b))
    return sum(x * y for x, y in zip(a, b, strict=True)) / (na * nb) if na and nb else 0.0


def unrotated(key, position, inv_freq):
    half = len(key) // 2
    out = [0.0] * len(key)
    for f in range(half):
        c, s = math.cos(-position * inv_freq[f]), math.sin(-position * inv_freq[f])
        out[f] = key[f] * c - key[f + half] * s
        out[f + half] = key[f] * s + key[f + half] * c
    return out


def stage_one(heads, s, prefix, kept, coverage):
    """The prompt entries that stay. heads: scores of every query head; s: their maximum."""
    if kept >= prefix:
        return set(range(prefix))
    reserve = min(kept // 2, round(coverage * kept))
    anchors = {round(i * (prefix - 1) / (reserve - 1)) for i in range(reserve)} if reserve > 1 else set(range(reserve))
    rest = [j for j in range(prefix) if j not in anchors]
    k = kept - len(anchors)
    union = set()
    for head in heads:
        union |= set(sorted(rest, key=lambda j: (-head[j], j))[:k])
    best = sorted(union, key=lambda j: (-s[j], j))[:k]
    left = [j for j in sorted(rest, key=lambda j: (-s[j], j)) if j not in best]
    return anchors | set(best) | set(left[: k - len(best)])


def phases(tokens, prompt_tokens, marks):
    """The phase of every position."""
    out, phase = [], 0
    for p in range(len(tokens)):
        out.append(phase)
        said = tuple(tokens[prompt_tokens : p + 1])
        phase += any(len(said) >= len(m) and said[-len(m) :] == m for m in marks)
    return out


class Groups:
    """Adjacent merging of the candidates beside a core."""

    def __init__(self, case, core, phased, gated):
        self.case = case
        self.groups, self.breaks = [], set()
        previous = None
        for j in case["candidates"]:
            if j in core:
                continue
            if previous is None or j != previous + 1 or (phased and case["phase"][j] != case["phase"][previous]):
                self.breaks.add(j)
            self.groups.append([j])
            previous = j
        self.gated = gated

    def mass(self, group):
        return sum(self.case["mass"][j] for j in group)

    def mean(self, group, vectors):
        total = self.mass(group)
        width = len(vectors[group[0]])
        return [sum(self.case["mass"][j] * vectors[j][i] for j in group) / total for i in range(width)]

    def key(self, i):
        """(tier, cosine) of the groups i and i + 1, None where they may not merge."""
        case, rule = self.case, self.case["rule"]
        left, right = self.groups[i], self.groups[i + 1]
        if right[0] in self.breaks:
            return None
        if self.gated and sum(case["s"][j] for j in left + right) > rule["gate"] * case["mean_best"]:
            return None
        if rule["distance"]:
            apart = []
            for values in case["values"]:
                a, b = self.mean(left, values), self.mean(right, values)
                apart.append(math.dist(a, b))
            if sum(apart) / len(apart) > rule["distance"]:
                return None
        like = round(cosine(self.mean(left, case["u"]), self.mean(right, case["u"])) * 2**20)
        gap = max(0, min(case["low"][j] for j in right) - max(case["high"][j] for j in left))
        near = gap <= rule["local_window"]
        if rule["similarity_role"] == "forbid" and like < rule["similarity"] * 2**20:
            return None
        return (2 if near and like >= rule["similarity"] * 2**20 else 1 if near else 0, like)

    def reduce(self, slots):
        """Merge until `slots` groups are left; whether that was possible."""
        while len(self.groups) > slots:
            keys = [(self.key(i), -i) for i in range(len(self.groups) - 1)]
            keys = [k for k in keys if k[0] is not None]
            if not keys:
                return False
            best, *rest = sorted(keys, reverse=True)
            # Between cosines one step apart the last bit of a single-precision product decides.
            if rest and best[0][0] == rest[0][0][0] and 0 < best[0][1] - rest[0][0][1] <= 2:
                self.case["close"] = True
            i = -best[1]
            self.groups[i : i + 2] = [self.groups[i] + self.groups[i + 1]]
        return True


def event(case):
    """keep, into, spans and measures. case: see test_cask.py."""
    rule, n, s, budget = case["rule"], case["n"], case["s"], case["budget"]
    prefix, window = case["prefix"], rule["recent"]
    generated = n - prefix
    # Stage one.
    target = prefix
    if rule["count_prompt"] and prefix:
        w = min(window, generated)
        a = 2 if generated > w else 0
        target = clip(budget - min(budget, w + a), 0, prefix) if generated else min(prefix, budget)
    survivors = stage_one(case["heads"], s, prefix, target, rule["coverage"])
    everything = survivors | set(range(prefix, n))
    if len(everything) <= budget:
        return finish(case, everything)
    if target >= budget:
        return finish(case, set(range(n - budget, n)))
    # Stage two.
    d = budget - target
    newest = min(window, generated)
    if generated > d and newest >= d:
        newest = max(0, d - 2)
    candidates = list(range(prefix, n - newest))
    m, a = len(candidates), max(0, d - newest)
    recent = set(range(n - newest, n))
    if a <= 1:
        return finish(case, survivors | set(candidates[m - a :]) | recent)
    sigma = {j: softplus(s[j]) + 1e-4 for j in candidates}
    case = {
        **case,
        "close": False,
        "candidates": candidates,
        "mass": {j: sigma[j] * case["count"][j] for j in candidates},
        "mean_best": sum(sorted((s[j] for j in candidates), reverse=True)[:a]) / a,
    }
    # The core.
    floor = min(rule["min_core"], m, a - 1)
    c = max(clip(round(rule["core_ratio"] * a), 0, min(a, m)), floor)
    if m > c and c == a:
        c = max(a - 1, floor)
    votes = dict.fromkeys(candidates, 0)
    if rule["core_mode"] == "vote":
        for head in case["heads"]:
            for j in sorted(candidates, key=lambda j: (-head[j], j))[:c]:
                votes[j] += 1
    core = sorted(candidates, key=lambda j: (-votes[j], -s[j], j))[:c]
    if rule["promotion"] and core:
        least = rule["promotion"] * min(s[j] for j in core)
        near = sorted((j for j in candidates if j not in core and s[j] >= least), key=lambda j: (-s[j], j))
        core = core + near[: a - 1 - len(core)]
    wanted = len(core)
    if not rule["merge"]:
        rest = sorted((j for j in candidates if j not in core), key=lambda j: (-s[j], j))[: a - wanted]
        kept = set(core) | set(rest)
        return finish(case, survivors | kept | recent, sigma=sigma, a=a, core=core, wanted=wanted)
    # Folding, with everything given up in turn.
    attempts = [(wanted, True, True), (wanted, False, True), (wanted, False, False)]
    if rule["core"] == "demote":
        attempts += [(k, False, False) for k in range(wanted - 1, -1, -1)]
        # Where all that is not enough, the core is not given up.
        attempts += [(wanted, False, False)]
    for size, phased, gated in attempts:
        trial = Groups(case, set(core[:size]), phased and rule["phases"], gated and bool(rule["gate"]))
        if trial.reduce(a - size):
            break
    core = core[:size]
    by_mass = sorted(range(len(trial.groups)), key=lambda i: (-trial.mass(trial.groups[i]), i))[: a - size]
    kept, into, spans = set(core), {}, {}
    for i, group in enumerate(trial.groups):
        if i not in by_mass:
            continue
        best = max(group, key=lambda j: (s[j], j)) if rule["representative"] == "score_max_source" else group[-1]
        kept.add(best)
        into |= dict.fromkeys(group, best)
        spans[best] = (min(case["low"][j] for j in group), max(case["high"][j] for j in group))
    return finish(case, survivors | kept | recent, into=into, spans=spans, sigma=sigma, a=a, core=core, wanted=wanted)


def finish(case, keep, *, into=None, spans=None, sigma=None, a=0, core=(), wanted=0):
    into = {**{j: j for j in keep}, **(into or {})}
    out = {"keep": keep, "into": into, "spans": spans or {}, "measures": None, "close": case.get("close", False)}
    if sigma is None:
        return out
    candidates, mass = case["candidates"], case["mass"]
    best = sum(sigma[j] for j in sorted(candidates, key=lambda j: (-case["s"][j], j))[:a])
    beside = [j for j in candidates if j not in core]
    merges = case["rule"]["merge"]
    out["measures"] = {
        "core_size": len(core),
        "core_demoted": wanted - len(core),
        "descriptors": sum(j in keep for j in beside) if merges else 0,
        "folded": sum(j in into for j in beside) if merges else 0,
        "dropped": sum(j not in into for j in beside) if merges else 0,
        "rho_core": sum(sigma[j] for j in core) / best,
        "rho_kept": sum(sigma[j] for j in candidates if j in keep) / best,
        "lost_mass": 1 - sum(mass[j] for j in candidates if j in keep) / sum(mass.values()),
    }
    return out
