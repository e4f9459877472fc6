"""From a problem to token ids: special tokens, chat templates, and prompt files that change."""

import json
import shutil

import pytest
from study_files import replace
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from cask_eval import embedded
from cask_eval.canonical import digest_text
from cask_eval.errors import CaskError, DriftError, ModelError, ProtocolError
from cask_eval.protocol.model import Prompt
from cask_eval.runner import models as runner_models
from cask_eval.runner.asking import Asking, digest_of
from cask_eval.tasks import Problem
from cask_eval.workspace import Workspace

WORDS = ["<s>", "</s>", "user", "system", "assistant", "solve", "it", "one", "two", "brief", "[UNK]"]
CHAT = (
    "{{ bos_token }}{% for m in messages %} {{ m.role }} {{ m.content }}{% endfor %}"
    "{% if brief is defined %} brief{% endif %}{% if add_generation_prompt %} assistant{% endif %}"
)
PROBLEM = Problem("p", "one two", "3")


@pytest.fixture
def tokenizer():
    """A tokenizer that puts a BOS token before every text, as Llama's does."""
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="[UNK]",
                                   chat_template=CHAT)  # fmt: skip


def asked(tokenizer, text=None, **prompt):
    ids = Asking(Prompt(**prompt), text).asker(tokenizer, "m")(PROBLEM)
    return " ".join(WORDS[i] for i in ids)


def test_raw_text_gets_the_tokenizers_own_special_tokens(tokenizer):
    assert asked(tokenizer) == "<s> one two"
    assert asked(tokenizer, "solve it {problem}") == "<s> solve it one two"


def test_a_chat_template_writes_its_own_and_ends_where_the_answer_begins(tokenizer):
    assert asked(tokenizer, form="chat") == "<s> user one two assistant"
    assert asked(tokenizer, "solve {problem}", form="chat") == "<s> user solve one two assistant"
    assert asked(tokenizer, form="chat", system="it") == "<s> system it user one two assistant"
    assert asked(tokenizer, form="chat", options={"brief": True}) == "<s> user one two brief assistant"


def test_what_a_model_cannot_be_asked(tokenizer):
    with pytest.raises(ModelError, match=r"models\[m\]: the prompt of p begins with two <s> tokens"):
        asked(tokenizer, "<s> {problem}")
    tokenizer.chat_template = "{{ raise_exception('no system role') }}"
    with pytest.raises(ModelError, match="the chat template refuses the prompt: no system role"):
        asked(tokenizer, form="chat")
    tokenizer.chat_template = None
    with pytest.raises(ModelError, match="prompt.form is chat, but the model's tokenizer has no chat template"):
        asked(tokenizer, form="chat")
    with pytest.raises(ModelError, match="the prompt of p has no tokens"):
        Asking().asker(Silent(), "m")(PROBLEM)


class Silent:
    chat_template = bos_token_id = None

    def __call__(self, text):
        return {"input_ids": []}


def test_a_prompt_file_that_is_not_there_or_outside(tmp_path):
    for name, message in (("gone.txt", "prompt.file: .*gone.txt cannot be read"), ("../x.txt", "must stay inside")):
        with pytest.raises(CaskError, match=message):
            Asking.read(Workspace(tmp_path), Prompt(file=name))


def test_the_digest_tells_prompts_apart():
    assert len({digest_of(p) for p in ([(1, 2)], [(1,), (2,)], [(2, 1)], [(1, 2), ()])}) == 4


def lock(root, cask):
    cask("register", root / "prereg" / "small.yaml", "--device", "cpu")
    return first_event(root)


def first_event(root):
    return json.loads((root / "prereg" / "ledger.jsonl").read_text().splitlines()[0])["payload"]


def test_a_study_locks_its_prompt_and_will_not_run_with_another(fresh, registered, copy, cask):
    root = copy(fresh)
    file = root / "prereg" / "prompts" / "note.txt"
    file.parent.mkdir()
    file.write_text("note {problem}\n")
    replace(root, "small", {"generation: {": "prompt: {file: prereg/prompts/note.txt}\n\ngeneration: {"})
    bare, event = first_event(registered), lock(root, cask)
    asked = event["prompt"]
    assert asked["file"] == digest_text(file.read_bytes())
    assert asked["tokens"].keys() == {"chain-s"} and asked["tokens"] != bare["prompt"]["tokens"]
    longest = [p["models"][0]["max_prompt_tokens"] for p in (event, bare)]
    assert longest[0] == longest[1] + 1
    file.write_text("well {problem}\n")
    with pytest.raises(DriftError, match="locked.prompt.file was .sha256:"):
        cask("-C", root, "tune", "--device", "cpu")
    file.unlink()
    with pytest.raises(ProtocolError, match="prompt.file: .* cannot be read"):
        cask("-C", root, "tune", "--device", "cpu")


def test_a_chat_study_locks_the_template(fresh, copy, cask, monkeypatch):
    root = copy(fresh)
    chat = "prompt: {form: chat}\n\ngeneration: {"
    folder = shutil.copytree(embedded.path("chain-s"), root / "model")
    replace(root, "small", {'id: "embedded:chain-s"': "id: model", "generation: {": chat})
    with pytest.raises(ModelError, match="has no chat template"):
        cask("register", root / "prereg" / "small.yaml", "--device", "cpu")
    (folder / "chat_template.jinja").write_text("{% for m in messages %}note {{ m.content }}{% endfor %}")
    monkeypatch.setattr(runner_models, "_held", {})  # a process loads a model once
    event = lock(root, cask)
    assert event["models"][0]["chat_template"] and "chat_template.jinja" in event["models"][0]["files"]
    assert event["prompt"]["file"] is None
    (folder / "chat_template.jinja").write_text("{% for m in messages %}well {{ m.content }}{% endfor %}")
    with pytest.raises(DriftError, match=r"locked.models.chain-s.digest was .sha256"):
        cask("-C", root, "tune", "--device", "cpu")
