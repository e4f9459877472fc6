"""Train an embedded model: ``python -m cask_eval.embedded.train --model chain-s``.

The training is seeded and can be stopped and resumed (``--out`` holds a checkpoint until it is finished). First comes
a warm-up on repeated random sequences, which teaches the model to copy by content (without it, look-ups stay unlearned
for long); then short chains; then the whole range of difficulties around the demo's. At last, half of the batches also
lose generated tokens from their cache at random, so that a lost entry costs what it said and not the form of the text.
At intervals the error of each kind of field is printed, because the mean loss hides which look-up is still missing.
"""

from __future__ import annotations

import argparse
import math
import random
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cask_eval.embedded import NAMES, path
from cask_eval.tasks import chain

PAD, BOS, EOS, UNK = "<pad>", "<s>", "</s>", "<unk>"
SPECIALS = (PAD, BOS, EOS, UNK)
#: Training draws its problems from seeds at and above this; studies use small ones (1 and 2 in the demo).
TRAIN_SEED = 1_000_000
#: The stream that accuracy is measured on here: neither trained on nor used by the demo studies.
CHECK_SEED = 900_000
#: Kinds of completion tokens, with their weight in the loss.
FIELDS = {
    "text": 0.1,  # fixed words
    "key": 1.0,  # the definition to read, from the pointer before it
    "pointer": 1.0,
    "payload": 1.0,
    "register": 1.0,  # looked up in the prompt
    "copy": 0.5,  # said a few tokens ago
    "recall": 1.0,
    "sum": 1.0,
    "answer": 1.0,  # registers, last written some hops ago
}
_KIND = {name: i for i, name in enumerate(FIELDS)}


@dataclass(frozen=True)
class Plan:
    """Shape and schedule of one model."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    steps: int
    warmup_steps: int
    short_steps: int
    dense_steps: int
    rate: float
    batch_tokens: int = 9000


PLANS = {
    "chain-s": Plan(
        width=128,
        layers=3,
        heads=4,
        kv_heads=2,
        mlp=256,
        steps=2200,
        warmup_steps=300,
        short_steps=500,
        dense_steps=300,
        rate=2.5e-3,
    ),
    "chain-m": Plan(
        width=128,
        layers=4,
        heads=4,
        kv_heads=2,
        mlp=256,
        steps=2400,
        warmup_steps=450,
        short_steps=500,
        dense_steps=300,
        rate=2e-3,
        batch_tokens=6000,
    ),
}


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the task; BOS goes before every text that is encoded."""
    words = [*SPECIALS, *chain.vocabulary()]
    inner = Tokenizer(WordLevel({w: i for i, w in enumerate(words)}, unk_token=UNK))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, words.index(BOS))])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNK,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )


def build_config(plan: Plan) -> LlamaConfig:
    """The Llama configuration of a plan."""
    return LlamaConfig(
        vocab_size=len(SPECIALS) + len(chain.vocabulary()),
        hidden_size=plan.width,
        intermediate_size=plan.mlp,
        num_hidden_layers=plan.layers,
        num_attention_heads=plan.heads,
        num_key_value_heads=plan.kv_heads,
        head_dim=plan.width // plan.heads,
        max_position_embeddings=2048,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


def kinds(words: list[str]) -> list[int]:
    """The field kind of each word of a completion."""
    out = []
    section = "text"
    for i, word in enumerate(words):
        before = words[i - 1] if i else ""
        if word in ("before", "after", "sum", "answer", "begin"):
            section = word
        if before == "read":
            kind = "key"
        elif i > 1 and words[i - 2] == "read":
            kind = "pointer"
        elif i > 2 and words[i - 3] == "read":
            kind = "payload"
        elif i > 3 and words[i - 4] == "read":
            kind = "register"
        elif before in ("at", "to", "before"):
            kind = "copy"
        elif before in chain.REGISTERS:
            kind = {"before": "recall", "sum": "sum", "answer": "answer", "after": "copy"}.get(section, "text")
        elif i > 0 and words[i - 1] == "." and word in ("in", "then", "answer"):
            kind = "copy"
        else:
            kind = "text"
        out.append(_KIND[kind])
    return out


class Data:
    """Batches as a function of (seed, step)."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.seed, self.plan = seed, plan
        self.ids = {w: i for i, w in enumerate([*SPECIALS, *chain.vocabulary()])}

    def encode(self, item: chain.Problem) -> tuple[list[int], list[int]]:
        """Token ids and, per token, its kind (-1 where there is no loss)."""
        prompt, words = item.prompt.split(), chain.scratchpad(item).split()
        ids = [1, *(self.ids[w] for w in prompt), *(self.ids[w] for w in words), 2]
        return ids, [-1] * (len(prompt) + 1) + kinds(words) + [_KIND["text"]]

    def repeated(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Random sequences followed by themselves; the second copy carries the loss."""
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        n = int(torch.randint(12, 64, (), generator=g))
        rows = min(128, self.plan.batch_tokens // (2 * n + 1))
        vocab = len(self.ids)
        half = torch.argsort(torch.rand(rows, vocab - 4, generator=g), dim=1)[:, :n] + 4
        ids = torch.cat([torch.ones(rows, 1, dtype=torch.long), half, half], 1)
        kind = torch.full_like(ids, -1)
        kind[:, n + 2 :] = _KIND["payload"]
        return ids, kind

    def difficulty(self, step: int) -> chain.Difficulty:
        rng = random.Random(f"{self.seed}/{step}")
        short = step < self.plan.warmup_steps + self.plan.short_steps
        variables = rng.choice((3, 4, 4, 5) if short else (4, 6, 7, 7, 7, 7, 8, 8))
        return chain.Difficulty(
            variables,
            distractors=rng.choice((0, 1, 2, 2, 3)),
            noise=rng.choice((0, 0, 1, 3)),
            recap=rng.choice(("z", "z", "never", "always")),
        )

    def evicts(self, step: int) -> bool:
        """Whether the batch of this step loses cache entries."""
        return step >= self.plan.warmup_steps + self.plan.short_steps + self.plan.dense_steps and step % 2 == 1

    def visible(self, step: int, kind: torch.Tensor) -> torch.Tensor:
        """Attention mask [rows, 1, query, key] of a batch whose cache is cut back every 16 tokens.

        The prompt stays; of the generated entries a random number of places is left, given out at random with a
        preference for recent entries that ranges from none to strict.
        """
        g = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        rows, n = kind.shape
        prompt = int((kind[0] >= 0).nonzero()[0])
        places = int(torch.randint(20, 100, (), generator=g))
        column = torch.arange(n)
        strength = torch.tensor([0.0, 0.02, 0.05, 0.2])[torch.randint(4, (rows, 1), generator=g)]
        score = torch.rand(rows, n, generator=g) + strength * column
        gone = torch.full((rows, n), n)
        for now in range(prompt + places + 16, n, 16):
            here = (column >= prompt) & (column < now) & (gone == n)
            kept = torch.zeros_like(here).scatter(1, score.masked_fill(~here, -1).topk(places, 1).indices, True)
            gone[here & ~kept] = now
        seen = (column[None, :, None] >= column) & (column[None, :, None] < gone[:, None, :])
        return seen[:, None]

    def batch(self, step: int) -> tuple[torch.Tensor, torch.Tensor]:
        if step < self.plan.warmup_steps:
            return self.repeated(step)
        difficulty = self.difficulty(step)
        rows = self.plan.batch_tokens // (60 + difficulty.variables * 31)
        items = (chain.problem(TRAIN_SEED + self.seed, step * 1024 + i, difficulty) for i in range(rows))
        return self.pad([self.encode(item) for item in items])

    @staticmethod
    def pad(rows: list[tuple[list[int], list[int]]]) -> tuple[torch.Tensor, torch.Tensor]:
        n = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [0] * (n - len(ids)) for ids, _ in rows])
        kind = torch.tensor([kind + [-1] * (n - len(kind)) for _, kind in rows])
        return ids, kind


def field_errors(model: LlamaForCausalLM, data: Data, items: list[chain.Problem], device: str) -> dict[str, float]:
    """Share of wrong next-token predictions by field, with the reference text before them."""
    ids, kind = (t.to(device) for t in data.pad([data.encode(item) for item in items]))
    with torch.no_grad():
        guess = model(input_ids=ids, use_cache=False).logits[:, :-1].argmax(-1)
    wrong, kind = guess != ids[:, 1:], kind[:, 1:]
    return {name: wrong[kind == i].float().mean().item() for name, i in _KIND.items()}


def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, items: list[chain.Problem]) -> float:
    """Share of problems solved by greedy generation with the full cache."""
    right = 0
    for start in range(0, len(items), 128):
        part = items[start : start + 128]
        batch = tokenizer([p.prompt for p in part], return_tensors="pt").to(model.device)
        with torch.no_grad():
            out = model.generate(
                input_ids=batch["input_ids"],
                attention_mask=batch["attention_mask"],
                do_sample=False,
                max_new_tokens=384,
            )
        texts = tokenizer.batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        right += sum(chain.grade(p, t).correct for p, t in zip(part, texts, strict=True))
    return right / len(items)


def fresh(count: int, difficulty: chain.Difficulty = chain.DEMO) -> list[chain.Problem]:
    """Problems of the stream kept for measuring."""
    return [chain.problem(CHECK_SEED, i, difficulty) for i in range(count)]


def rate_at(plan: Plan, steps: int, step: int) -> float:
    """Linear warm-up and a slow cosine until evictions begin, from there linear to zero."""
    up, period = 150, 4850
    turn = plan.warmup_steps + plan.short_steps + plan.dense_steps
    if step < up:
        return plan.rate * (step + 1) / up
    slow = plan.rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (min(step, turn) - up) / period)))
    return slow if step < turn else slow * (steps - step) / max(1, steps - turn)


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write the Hugging Face folder."""
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=2, pad_token_id=0, do_sample=False)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


def train(name: str, steps: int | None, seed: int, out: Path, device: str, every: int, until: int | None) -> None:
    """Train model `name` into folder `out`."""
    console = Console()
    plan = PLANS[name]
    steps = steps or plan.steps
    torch.manual_seed(seed)
    model = LlamaForCausalLM(build_config(plan)).to(device)
    tokenizer, data = build_tokenizer(), Data(seed, plan)
    decay = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decay, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}],
        lr=plan.rate,
        betas=(0.9, 0.98),
        fused=True,
    )
    weights = torch.tensor(list(FIELDS.values()), device=device)
    out.mkdir(parents=True, exist_ok=True)
    checkpoint, step, spent = out / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        if (state["steps"], state["seed"], state["plan"]) != (steps, seed, asdict(plan)):
            raise SystemExit(f"{checkpoint} belongs to another run; remove it or choose another --out")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
    size = sum(p.numel() for p in model.parameters())
    console.print(f"{name}: {size:,} parameters, steps {step}..{steps}, seed {seed}, {device}")
    probe = fresh(64)
    began = time.monotonic() - spent
    columns = (
        TextColumn(name),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[loss]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        bar = progress.add_task(name, total=steps, completed=step, loss="")
        while step < min(steps, until or steps):
            for group in optimizer.param_groups:
                group["lr"] = rate_at(plan, steps, step)
            ids, kind = (t.to(device) for t in data.batch(step))
            at = (kind[:, 1:] >= 0).nonzero(as_tuple=True)
            mask = data.visible(step, kind[:, :-1].cpu()).to(device) if data.evicts(step) else None
            hidden = model.model(input_ids=ids[:, :-1], attention_mask=mask, use_cache=False).last_hidden_state[at]
            weight = weights[kind[:, 1:][at]]
            loss = torch.nn.functional.cross_entropy(model.lm_head(hidden), ids[:, 1:][at], reduction="none")
            loss = (loss * weight).sum() / weight.sum()
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            step += 1
            progress.update(bar, completed=step, loss=f"loss {loss.item():.3f}")
            if step % every == 0 or step == steps:
                errors = field_errors(model, data, probe, device)
                spent = time.monotonic() - began
                text = "  ".join(f"{k} {v:.3f}" for k, v in errors.items())
                console.print(f"{step:6d}  {spent:6.0f} s  loss {loss.item():.3f}  errors: {text}", soft_wrap=True)
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}
                torch.save({**state, "steps": steps, "seed": seed, "plan": asdict(plan)}, checkpoint)
    model.eval()
    save(model, tokenizer, out)
    if step < steps:
        return
    scores = measure(model, tokenizer)
    for difficulty, score in scores.items():
        console.print(f"accuracy {difficulty}: {score:.4f} ({CHECKED} fresh problems, greedy, full cache)")
    (out / "README.md").write_text(card(name, steps, seed, spent, device, scores), encoding="utf-8", newline="\n")
    checkpoint.unlink()


#: How many fresh problems the accuracy on a model card rests on.
CHECKED = 512


def measure(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Accuracy with the full cache at the demo difficulty and beside it, by difficulty."""
    beside = [chain.Difficulty(recap=r) for r in chain.RECAPS if r != chain.DEMO.recap]
    beside += [chain.Difficulty(variables=8), chain.Difficulty(distractors=3, noise=3)]
    return {d.tag: accuracy(model, tokenizer, fresh(CHECKED, d)) for d in (chain.DEMO, *beside)}


def card(name: str, steps: int, seed: int, spent: float, device: str, scores: dict[str, float]) -> str:
    """The model card."""
    plan = PLANS[name]
    config = build_config(plan)
    with torch.device("meta"):
        size = sum(p.numel() for p in LlamaForCausalLM(config).parameters())
    mark = {chain.DEMO.tag: " (demo)"}
    rows = "\n".join(f"| `{tag}`{mark.get(tag, '')} | {score:.3f} | {CHECKED} |" for tag, score in scores.items())
    return CARD.format(
        name=name,
        size=size,
        plan=plan,
        config=config,
        steps=steps,
        seed=seed,
        minutes=spent / 60,
        device=device,
        rows=rows,
        stream=TRAIN_SEED + seed,
        check=CHECK_SEED,
        version=chain.VERSION,
        tag=chain.DEMO.tag,
    )


CARD = """\
---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# {name}

A tiny decoder for trying cache compression offline. It does one thing: the chain task of cask-eval (walk shuffled
definitions in a scratchpad, keep three registers up to date, report them). It knows nothing else.

## Architecture
Llama: {size:,} parameters (fp32, tied embeddings), {plan.layers} layers, width {plan.width}, {plan.heads} heads,
{plan.kv_heads} KV heads, head size {config.head_dim}, MLP {plan.mlp}, RoPE, {config.max_position_embeddings} positions.
Tokenizer: one token per word, {config.vocab_size} in all, BOS before every text.

## Training
Task text version {version}, problems of stream (seed) {stream} only, of 3 to 8 variables, 0 to 3 distractors, 0 to 3
noise words and all three recap modes. Studies use small seeds (1 and 2 in the demo): nothing they ask was trained on.
{steps} steps of about {plan.batch_tokens:,} tokens, seed {seed}, AdamW (peak rate {plan.rate}), loss on completion
tokens: {plan.warmup_steps} steps on repeated random sequences, {plan.short_steps} on short chains,
{plan.dense_steps} on the whole range; then every second batch had generated entries dropped from its cache at random (every 16 tokens, 20 to
99 places, the prompt kept), so that a lost entry costs what it said and not the form of the text.
Wall time: {minutes:.0f} minutes on {device}, on a machine shared with other work.

    python -m cask_eval.embedded.train --model {name} --steps {steps} --seed {seed}

## Accuracy
Exact match, free-running greedy generation, full cache, problems 0 to 511 of stream {check}, which is neither trained
on nor used by the demo. Tags: `v` variables, `d` distractors, `n` noise words, then the recap mode.

| difficulty | accuracy | n |
| --- | --- | --- |
{rows}

## Limits
Text outside the task's vocabulary becomes `<unk>`. What a method does to this model says nothing about large models;
it shows that a study runs, and which kind of generated entry a method loses.
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m cask_eval.embedded.train", description="Train an embedded model.")
    parser.add_argument("--model", choices=NAMES, required=True)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="folder to write (default: the package's own)")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--every", type=int, default=100, help="steps between two reports")
    parser.add_argument("--until", type=int, help="stop at this step and keep the checkpoint")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    train(args.model, args.steps, args.seed, args.out or path(args.model), args.device, args.every, args.until)


if __name__ == "__main__":
    main()
