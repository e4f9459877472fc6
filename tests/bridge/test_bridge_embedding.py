"""Embeddings from a tiny random model in a folder, against its own states pooled by hand."""

import pytest
import torch

from cask_eval.bridge.embedding import Embedder
from cask_eval.errors import CaskError

TEXTS = ["the cat sat", "a dog ran off", "the cat", "天气很好", ""]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    path = tmp_path_factory.mktemp("embedder")
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"the cat sat a dog ran off 天 气 很 好".split()]
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(path)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    BertModel(config).save_pretrained(path)
    return path


def test_cosines_are_those_of_mean_pooled_states(folder):
    from transformers import AutoModel, AutoTokenizer

    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def pooled(text):
        with torch.no_grad():
            return model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].double().mean(0)

    pairs = [(a, b) for a in TEXTS for b in TEXTS]
    found = Embedder(folder).cosines(pairs)
    for (a, b), value in zip(pairs, found, strict=True):
        expected = float(torch.nn.functional.cosine_similarity(pooled(a), pooled(b), dim=0))
        assert value == pytest.approx(expected, abs=1e-5)  # padding changes nothing
    assert all(found[i * len(TEXTS) + i] == pytest.approx(1) for i in range(len(TEXTS)))


def test_long_texts_are_cut_and_counted(folder):
    embedder = Embedder(folder)
    assert embedder.longest == 12
    long = "the cat " * 50
    (same,) = embedder.cosines([(long, long + "ran")])
    assert same == pytest.approx(1) and embedder.cut == 2


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(CaskError, match="is no folder"):
        Embedder(tmp_path / "none")
    with pytest.raises(CaskError, match="cannot be loaded"):
        Embedder(tmp_path)
