"""From a problem to the token ids that a model reads: prompt file, chat template, special tokens."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from cask_eval.canonical import digest_bytes, digest_text
from cask_eval.errors import ModelError, ProtocolError
from cask_eval.protocol.model import Prompt
from cask_eval.protocol.prompt import fill, parse
from cask_eval.tasks import Problem
from cask_eval.workspace import Workspace

Ask = Callable[[Problem], tuple[int, ...]]


@dataclass(frozen=True)
class Asking:
    """How a study asks: the protocol's section, and the text of its prompt file with that file's digest."""

    prompt: Prompt = Prompt()
    text: str | None = None
    digest: str | None = None

    @classmethod
    def read(cls, workspace: Workspace, prompt: Prompt | None) -> Asking:
        """Raises ProtocolError when the prompt file is not one."""
        if prompt is None or prompt.file is None:
            return cls(prompt or Prompt())
        path = workspace.resolve(prompt.file)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ProtocolError([f"prompt.file: {path} cannot be read ({error.strerror or error})"]) from None
        return cls(prompt, parse(data, f"prompt.file: {prompt.file}"), digest_text(data))

    def asker(self, tokenizer: Any, name: str) -> Ask:
        """Problem → token ids for one model; `name` is what messages call it. Raw text gets the special tokens that the
        tokenizer puts around any text; a chat template writes its own, and nothing is put around what it wrote. Raises
        ModelError when there is no chat template, or a prompt would begin with two BOS tokens."""
        if self.prompt.form == "chat" and not tokenizer.chat_template:
            raise ModelError(
                f"models[{name}]: prompt.form is chat, but the model's tokenizer has no chat template; use form raw, "
                "with a prompt file that says all that the model must see"
            )

        def ask(problem: Problem) -> tuple[int, ...]:
            text = fill(self.text, problem.prompt)
            if self.prompt.form == "raw":
                ids = tokenizer(text)["input_ids"]
            else:
                ids = tokenizer(self._chat(tokenizer, text, name), add_special_tokens=False)["input_ids"]
            if tokenizer.bos_token_id is not None and list(ids[:2]) == [tokenizer.bos_token_id] * 2:
                raise ModelError(
                    f"models[{name}]: the prompt of {problem.id} begins with two {tokenizer.bos_token} tokens, because "
                    "the text has one and the tokenizer adds one; take it out of the prompt file"
                )
            if not ids:
                raise ModelError(f"models[{name}]: the prompt of {problem.id} has no tokens; the model cannot begin")
            return tuple(ids)

        return ask

    def _chat(self, tokenizer: Any, text: str, name: str) -> str:
        system = [] if self.prompt.system is None else [{"role": "system", "content": self.prompt.system}]
        messages = [*system, {"role": "user", "content": text}]
        try:
            return tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True, **self.prompt.options
            )
        except Exception as error:  # a template is a program of the model's author, and refuses in its own words
            raise ModelError(f"models[{name}]: the chat template refuses the prompt: {error}") from None


def digest_of(prompts: Iterable[tuple[int, ...]]) -> str:
    """Digest of token ids, prompt after prompt."""
    return digest_bytes(json.dumps([list(ids) for ids in prompts]).encode())
