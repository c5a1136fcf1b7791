"""The one law on UL2 batches, for every unit: rows of the stream read at once, in uneven pieces, token by token, and example by example."""

from pathlib import Path

import pytest
import torch

from data_sources import Batch, open_stream
from data_sources.stream import Options
from lm.model import Context, Model, build_model
from lm.preset import MECHANISMS, Preset
from tests.data_sources.streams import three_sources
from tests.objectives.rebuilding import mixture, tokenizer_with_gaps
from tests.test_law import DATA, VARIANTS, Sections, randomised, routers_of

LENGTH, VOCABULARY = 96, 362
HANDED_IN = {"retro"}  # is refused: it would be handed what stands in the gaps
MODELS: dict[str, Sections] = {name: variants[0] for name, variants in VARIANTS.items() if name not in HANDED_IN}
MODELS["depths"] = {"mixture_of_depths": {"enabled": True, "layers": [1]}}


def model_of(name: str) -> Model:
    """Two layers with one unit, all parameters random, and routers that pick about half."""
    sections = {key: dict(value) for key, value in MODELS[name].items()}
    model = {"hidden_size": 12, "num_layers": 2, "num_heads": 3, "seq_length": LENGTH, "ffn_size": 7} | sections.pop("model", {})
    if name in MECHANISMS:
        sections[name] = sections.get(name, {}) | {"enabled": True}
    built = build_model(
        Preset.model_validate({"model": model | {"activation": "relu2" if name == "relu2" else "swiglu"}, "data": DATA, **sections}), VOCABULARY
    )
    model = randomised(built, torch.float64)
    assert name == "depths" or any(name in names for names in model.plan)
    for router in routers_of(model):
        router.threshold.data.zero_()
    return model


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    """Two rows, of several examples each, with gaps in some."""
    with open_stream(three_sources(tmp_path), tokenizer_with_gaps(), LENGTH, 48, options=Options(rewrite=mixture(longest=30))) as stream:
        rows = next(stream)[0]
    return Batch(**{**vars(rows), **{name: getattr(rows, name)[3:5] for name in ("tokens", "targets", "restart", "source", "lane", "row", "kind")}})


@pytest.mark.parametrize("name", MODELS)
def test_pieces_and_examples_equal_the_whole(name: str, batch: Batch) -> None:
    kinds = set(batch.kind.flatten().tolist())
    assert int(batch.restart.sum()) >= 4 and 1 in kinds and kinds & {0, 2} and len(tokenizer_with_gaps()) == VOCABULARY
    model = model_of(name)
    whole, expected = loss(model, batch, [LENGTH])
    for cuts in ([1, 50, 0, 13, 32], [*[1] * 24, LENGTH - 24]):
        in_pieces, gradients = loss(model, batch, cuts)
        assert torch.allclose(in_pieces, whole, atol=1e-9)
        assert all(torch.allclose(ours, theirs, atol=1e-8) for ours, theirs in zip(gradients, expected, strict=True))
    for row in range(len(batch.tokens)):
        starts = [*batch.restart[row].nonzero().flatten().tolist(), LENGTH]
        alone = [model(batch.tokens[row : row + 1, start:stop]).hidden[0] for start, stop in zip(starts, starts[1:], strict=False)]
        assert torch.allclose(torch.cat(alone), model(batch.tokens, context=Context(restart=batch.restart)).hidden[row], atol=1e-9)


def loss(model: Model, batch: Batch, cuts: list[int]) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Over what is scored, read in pieces of these lengths, and its gradients."""
    state, hidden, start = model.initial_state(len(batch.tokens)), [], 0
    for cut in cuts:
        part = slice(start, start + cut)
        out = model(batch.tokens[:, part], state, Context(restart=batch.restart[:, part]))
        state, start = out.state, start + cut
        hidden.append(out.logits)
    logits = torch.cat(hidden, 1)
    total = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten())
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return total.detach(), [torch.zeros_like(own) if gradient is None else gradient for own, gradient in zip(parameters, found, strict=True)]
