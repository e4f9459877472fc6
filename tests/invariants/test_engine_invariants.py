"""Invariants of whole runs on a real (tiny) model, for every registered method (methods.md §5: U1, U2, U5–U7, U9–U11,
U13)."""

import pytest
import torch
from cases import null_of, reference_of, requests, run, small
from engine_models import prompts

from cask_eval.engine import registry
from cask_eval.engine.contract import Needs
from cask_eval.engine.sampling import Sampling
from cask_eval.residency import walk

COUNT = 5


class Watch:
    """What happened in a run, by request: logits of every step, and every event before and after."""

    def __init__(self):
        self.rows, self.events = {}, {}

    def logits(self, requests, logits):
        for request, row in zip(requests, logits):
            self.rows.setdefault(request.key, []).append(row.clone())

    def event(self, requests, before, after):
        for i, request in enumerate(requests):
            keep = after.keep[:, i]
            kept = [
                [after.entries.positions[a, i, h][keep[a, h]].tolist() for h in range(keep.shape[1])]
                for a in range(keep.shape[0])
            ]
            held = [
                [before.positions[a, i, h][before.resident[a, i, h]].tolist() for h in range(keep.shape[1])]
                for a in range(keep.shape[0])
            ]
            self.events.setdefault(request.key, []).append((before.rows(slice(i, i + 1)), after, i, held, kept))


def wanted(count=COUNT):
    return requests(prompts(count))


def test_u1_a_budget_beyond_the_length_changes_nothing(each, model, host):
    method = each.method if each.method.packing() is None else null_of(each.name)
    policy, new = method.bind(host), 24
    full = small("fullkv").bind(host)
    watch, plain = Watch(), Watch()
    schedule = policy.schedule(400).split()[0]
    out = run(model, wanted(), policy, schedule, new, probe=watch)
    want = run(model, wanted(), full, full.schedule(1), new, probe=plain)
    assert {k: o.output_ids for k, o in out.items()} == {k: o.output_ids for k, o in want.items()}
    assert not watch.events and not any(o.residency.events for o in out.values())
    for key, rows in plain.rows.items():
        for a, b in zip(rows, watch.rows[key], strict=True):
            assert torch.equal(a, b)


def test_u2_the_null_setting_is_the_reference_token_for_token(compressing, model, host):
    null = null_of(compressing.name)
    if null is None or null.reference is None:
        pytest.skip("has no null setting")
    budget = max(compressing.budget, 20)
    ours, theirs = null.bind(host), reference_of(null).bind(host)
    a = run(model, wanted(), ours, ours.schedule(budget).split()[0], budget + 14)
    b = run(model, wanted(), theirs, theirs.schedule(budget), budget + 14)
    assert all(o.residency.events for o in b.values())
    assert {k: o.output_ids for k, o in a.items()} == {k: o.output_ids for k, o in b.items()}
    assert {k: o.residency.events for k, o in a.items()} == {k: o.residency.events for k, o in b.items()}


def test_u5_u6_order_company_and_repetition_change_nothing(compressing, model, host):
    policy = compressing.policy(host)
    schedule, new = compressing.schedules(policy)[0], compressing.new_tokens
    alone = {}
    for request in wanted():
        alone |= run(model, [request], policy, schedule, new, slots=1)
    together = run(model, wanted(), policy, schedule, new, slots=3)
    backwards = run(model, wanted()[::-1], policy, schedule, new, slots=5, poll=7)
    again = run(model, wanted()[:2], policy, schedule, new, slots=2)
    for other in (together, backwards, again):
        for key, outcome in other.items():
            assert outcome.output_ids == alone[key].output_ids
            assert outcome.residency == alone[key].residency
            assert outcome.regions == alone[key].regions
            assert (outcome.kept_min, outcome.kept_max) == (alone[key].kept_min, alone[key].kept_max)
    assert all(o.residency.events for o in alone.values())


def test_u7_u11_entries_stay_in_order_and_nothing_comes_back(compressing, model, host):
    policy = compressing.policy(host)
    watch = Watch()
    out = run(model, wanted(), policy, compressing.schedules(policy)[0], compressing.new_tokens, probe=watch)
    for key, events in watch.events.items():
        prompt, last = len(wanted()[key].prompt_ids), None
        for before, _after, _, held, kept in events:
            length = int(before.length)
            for layer, heads in enumerate(held):
                for head, positions in enumerate(heads):
                    assert positions == sorted(set(positions)) and positions[-1] < length
                    if last is not None:
                        allowed = set(last[1][layer][head]) | set(range(last[0], length))
                        assert set(positions) == allowed
                    else:
                        assert positions == list(range(length))
                    assert set(kept[layer][head]) <= set(positions)
            last = (length, kept)
        assert prompt and len(events) >= len(out[key].residency.events)


def test_u9_what_is_kept_is_bit_for_bit_what_was_there(compressing, model, host):
    policy = compressing.policy(host)
    watch = Watch()
    run(model, wanted(), policy, compressing.schedules(policy)[0], compressing.new_tokens, probe=watch)
    for events in watch.events.values():
        for before, after, i, _, _ in events:
            keep = after.keep[:, i]
            width = keep.shape[-1]
            new, old = after.entries, before
            if getattr(compressing.method, "reindex", False):
                continue
            values = (new.values[:, i][keep], old.values[:, 0, :, :width][keep])
            keys = (new.keys[:, i][keep], old.keys[:, 0, :, :width][keep])
            if compressing.evicts or not compressing.merges:
                assert torch.equal(*values) and torch.equal(*keys)


def test_u9_attention_after_events_is_full_attention_under_a_mask(compressing, model, dense, host):
    """A forward that never evicts, masked per layer and head to what was kept, gives the same logits."""
    if not compressing.evicts:
        pytest.skip("what it keeps is not what was there")
    policy = compressing.policy(host)
    watch = Watch()
    request = wanted()[0]
    new = compressing.new_tokens
    (out,) = run(
        model, [request], policy, compressing.schedules(policy)[0], new, probe=watch, sampling=Sampling(new)
    ).values()
    tokens = [*request.prompt_ids, *out.output_ids]
    n, prompt = len(tokens) - 1, len(request.prompt_ids)
    shape = host.geometry
    visible = torch.ones(n, n, dtype=torch.bool).tril().repeat(shape.layers, shape.kv_heads, 1, 1)
    for before, _after, _, held, kept in watch.events[0]:
        length = int(before.length)
        for layer in range(shape.layers):
            for head in range(shape.kv_heads):
                gone = sorted(set(held[layer][head]) - set(kept[layer][head]))
                visible[layer, head, length:, gone] = False
    want, queries = dense(tokens[:n], visible)
    for step, row in enumerate(watch.rows[0]):
        at = prompt - 1 + step
        if at < n:
            assert torch.allclose(row, want[at], rtol=1e-4, atol=1e-4 * float(want[at].abs().max())), step
    if (w := policy.needs.queries) and watch.events[0]:
        # U10: the remembered queries are those that attention really used, at their own positions.
        for before, *_ in watch.events[0]:
            for slot in range(w):
                p = int(before.query_positions[0, slot])
                if p >= 0:
                    assert torch.allclose(before.queries[:, 0, :, slot], queries[:, :, p], rtol=1e-4, atol=1e-4)


def test_u10_remembered_queries_are_the_newest_at_their_own_positions(model, host):
    """Also for a method that ships none: a scorer that asks for five."""

    class Scorer:
        needs = Needs(queries=5)

        def score(self, entries, candidates):
            return entries.positions.float().masked_fill(~candidates, 0)

    class Asking(registry.load("recency_pp")):
        def scorer(self):
            return Scorer()

    policy, watch = Asking(delta=4).bind(host), Watch()
    run(model, wanted(), policy, policy.schedule(16), 30, probe=watch)
    for events in watch.events.values():
        for before, *_ in events:
            length = int(before.length)
            want = [p if p >= 0 else -1 for p in range(length - 5, length)]
            assert before.query_positions[0].tolist() == want


def test_u13_the_account_is_the_one_the_schedule_foretells(compressing, model, host):
    """`generate` itself compares its two meters at the end of every trial; here both meet the planned account."""
    policy = compressing.policy(host)
    for schedule in compressing.schedules(policy):
        out = run(model, wanted(), policy, schedule, compressing.new_tokens)
        for key, o in out.items():
            prompt = len(wanted()[key].prompt_ids)
            want = walk(schedule, policy.footprint, prompt, len(o.output_ids) - 1, host.geometry.layers, o.output_ids)
            assert o.residency == want
            assert o.residency.payload_bytes > 0
