"""How alike two outputs are in meaning: the cosine of sentence embeddings, by a model in a folder that the user names.

The embedding is the mean of the encoder's last hidden states over the tokens, as most sentence-embedding models want it
(Reimers & Gurevych 2019, arXiv:1908.10084); models that want another pooling give other cosines here than elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cask_eval.errors import CaskError

__all__ = ["Embedder"]

_BATCH = 32


class Embedder:
    """A sentence-embedding model in a local folder, on the CPU in float32. `longest`: tokens it reads, the rest of a
    text is left out; `cut` counts the texts to which that happened. Raises CaskError when it cannot be loaded."""

    def __init__(self, folder: str | Path):
        try:
            import torch
            from transformers import AutoModel, AutoTokenizer
        except ImportError:
            raise CaskError("--embedder needs torch and transformers: pip install 'cask-eval[semantic]'") from None
        path = Path(folder)
        if not path.is_dir():
            raise CaskError(f"--embedder {folder}: is no folder; give the local folder of a sentence-embedding model")
        try:
            self._tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
            self._model = AutoModel.from_pretrained(path, local_files_only=True, dtype=torch.float32).eval()
        except (OSError, ValueError, KeyError) as error:
            what = f"cannot be loaded: {str(error).splitlines()[0]}"
            raise CaskError(f"--embedder {folder}: {what}; give a model that AutoModel reads") from None
        self._torch = torch
        self.longest = self._longest()
        self.cut = 0

    def cosines(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """The cosine of each pair. Raises CaskError when the model gives something that is not finite."""
        texts = list(dict.fromkeys(text for pair in pairs for text in pair))
        vectors = dict(zip(texts, self._embed(texts)))
        found = [float(vectors[a] @ vectors[b]) for a, b in pairs]
        if any(value != value for value in found):
            raise CaskError("--embedder: the model gives embeddings that are not finite; use another one")
        return found

    def _embed(self, texts: Sequence[str]) -> list[Any]:
        """Unit vectors. Texts of like length are read together, since padding is read too."""
        torch, encoded = self._torch, []
        for text in texts:
            ids = self._tokenizer(text, truncation=False, verbose=False)["input_ids"]
            if len(ids) > self.longest:
                self.cut += 1
                ids = self._tokenizer(text, truncation=True, max_length=self.longest)["input_ids"]
            encoded.append(ids)
        out: list[Any] = [None] * len(texts)
        order = sorted((i for i, ids in enumerate(encoded) if ids), key=lambda i: len(encoded[i]))
        pad = self._tokenizer.pad_token_id or 0
        for start in range(0, len(order), _BATCH):
            rows = order[start : start + _BATCH]
            width = max(len(encoded[i]) for i in rows)
            ids = torch.tensor([encoded[i] + [pad] * (width - len(encoded[i])) for i in rows])
            mask = torch.tensor([[1] * len(encoded[i]) + [0] * (width - len(encoded[i])) for i in rows])
            with torch.inference_mode():
                states = self._model(input_ids=ids, attention_mask=mask).last_hidden_state.double()
            mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
            for i, vector in zip(rows, torch.nn.functional.normalize(mean, dim=-1)):
                out[i] = vector
        # A text of which the tokenizer leaves nothing has no direction: its cosine is 0 with anything.
        size = next((len(v) for v in out if v is not None), 1)
        return [torch.zeros(size, dtype=torch.float64) if v is None else v for v in out]

    def _longest(self) -> int:
        config = self._model.config
        places = getattr(config, "max_position_embeddings", None)
        if places and config.model_type in ("roberta", "xlm-roberta", "camembert"):
            places -= 2  # their positions start behind the padding token's
        known = [n for n in (self._tokenizer.model_max_length, places) if isinstance(n, int) and 0 < n < 10**9]
        return min(known, default=512)
