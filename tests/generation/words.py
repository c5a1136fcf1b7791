"""A model over seven words, small enough that the distribution of all it may write is known."""

from collections.abc import Iterator, Mapping

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import PreTrainedTokenizerFast

from lm.auxiliary.heads import build_heads
from lm.generation.sampling import Sampler
from lm.model import Model, build_model
from lm.preset import Preset, preset_from_json
from lm.preset.generation import GenerationConfig

WORDS = ("<eos>", "a", "plant", "lives", "on", "and", "dies")
HEADS = '"auxiliary": {"enable_dynamics": true, "enable_value": true, "enable_policy": true, "value_span": 3}'
TINY = f'{{"name": "words", "model": {{"hidden_size": 12, "num_layers": 2, "num_heads": 3, "seq_length": 9}}, {HEADS}, "data": {{"sources": ["c4"]}}}}'
ENDED = -1


def tiny_preset() -> Preset:
    return preset_from_json(TINY, "words")


def words_tokenizer(ends: bool = True) -> PreTrainedTokenizerFast:
    """ends: whether the first word ends a document."""
    whole = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="a"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<eos>" if ends else None)


def randomised(preset: Preset, seed: int = 3, std: float = 0.3) -> tuple[Model, nn.ModuleDict]:
    """A model and its heads with every parameter random, in float64."""
    torch.manual_seed(seed)
    model, heads = build_model(preset, len(WORDS)).double(), build_heads(preset, pad=0).double()
    for parameter in [*model.parameters(), *heads.parameters()]:
        nn.init.normal_(parameter, std=std)
    return model, heads


def taught(model: Model, heads: nn.ModuleDict, steps: int = 150) -> nn.ModuleDict:
    """The dynamics module after some lessons in what the model's latents are."""
    generator, dynamics = torch.Generator().manual_seed(1), heads["dynamics"]
    optimizer = torch.optim.Adam(dynamics.parameters(), lr=0.01)
    for _ in range(steps):
        tokens = torch.randint(len(WORDS), (16, 12), generator=generator)
        with torch.no_grad():
            hidden = model(tokens).hidden
        latent, loss = hidden[:, :-2], 0.0
        for step in (1, 2):
            latent = dynamics.step(latent, model.embedding(tokens[:, step : step + 10]).detach())
            loss = loss + (latent - hidden[:, step : step + 10]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return heads


@torch.no_grad()
def all_that_may_come(model: Model, read: tuple[int, ...], settings: GenerationConfig, depth: int) -> Mapping[tuple[int, ...], float]:
    """The chance of each text of up to `depth` tokens after `read`, as drawn token by token. ENDED stands for the end."""
    sampler = Sampler(settings)

    def texts(written: tuple[int, ...], chance: float) -> Iterator[tuple[tuple[int, ...], float]]:
        if len(written) == depth:
            yield written, chance
            return
        history = [token for token in (*read, *written) if token]
        chances = sampler.chances(sampler.ruled(model(torch.tensor([[*read, *written]])).logits[0, -1], history)).tolist()
        yield (*written, ENDED), chance * chances[0]
        for token in range(1, len(WORDS)):
            yield from texts((*written, token), chance * chances[token])

    return dict(texts((), 1.0))
