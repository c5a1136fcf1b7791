"""A small model with random weights, and a byte-level tokenizer of a few merges."""

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from lm.model import Model, build_model
from lm.preset import Preset, preset_from_json

TEXT = ["The perennial plant lives for years; an annual one dies. Über größe, naïve café, 東京, 🌱🌿 and so on."] * 3

PRESET = """{"name": "small", "model": {"hidden_size": 24, "num_layers": 2, "num_heads": 3, "num_kv_heads": 1, "seq_length": 16},
             "data": {"sources": ["natural_questions"]}}"""


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    specials = ["<bos>", "<eos>", "<pad>"]
    bpe.train_from_iterator(TEXT, trainers.BpeTrainer(vocab_size=270, special_tokens=specials, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


@pytest.fixture(scope="session")
def preset() -> Preset:
    return preset_from_json(PRESET, "small")


@pytest.fixture
def model(preset: Preset, tokenizer: PreTrainedTokenizerFast) -> Model:
    """Every parameter random, so that no gate hides a mistake."""
    torch.manual_seed(3)
    model = build_model(preset, len(tokenizer)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model
