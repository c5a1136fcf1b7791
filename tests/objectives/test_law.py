"""The one law on UL2 batches: rows of the stream read at once, in uneven pieces, token by token, and example by example."""

from pathlib import Path

import pytest
import torch

from data_sources import Batch, open_stream
from data_sources.stream import Options
from lm.model import Context, Model, build_model
from lm.preset import Preset
from tests.data_sources.streams import three_sources
from tests.objectives.rebuilding import mixture, tokenizer_with_gaps
from tests.test_law import DATA, randomised

LENGTH, VOCABULARY = 96, 362
MODELS = {
    "attention, window": {"longformer": {"enabled": True, "layers": [1], "window": 11, "global_tokens": 2}},
    "state space, delta rule": {"s5": {"enabled": True, "layers": [0], "state_size": 6}, "deltanet": {"enabled": True, "layers": [1]}},
    "rwkv, convolution": {
        "rwkv": {"enabled": True, "layers": [0]},
        "rwkv_channel": {"enabled": True, "layers": [0]},
        "hyena": {"enabled": True, "layers": [1]},
    },
    "mamba2, experts": {"mamba2": {"enabled": True, "state_size": 5}, "moe": {"enabled": True, "layers": [1]}},
}


@pytest.fixture
def batch(tmp_path: Path) -> Batch:
    """Four rows, of several examples each, with gaps in some."""
    with open_stream(three_sources(tmp_path), tokenizer_with_gaps(), LENGTH, 48, options=Options(rewrite=mixture(longest=30))) as stream:
        rows = next(stream)[0]
    return Batch(**{**vars(rows), **{name: getattr(rows, name)[3:7] for name in ("tokens", "targets", "restart", "source", "lane", "row", "kind")}})


@pytest.mark.parametrize("name", MODELS)
def test_pieces_and_examples_equal_the_whole(name: str, batch: Batch) -> None:
    kinds = set(batch.kind.flatten().tolist())
    assert int(batch.restart.sum()) >= 6 and 1 in kinds and kinds & {0, 2} and len(tokenizer_with_gaps()) == VOCABULARY
    raw = {"model": {"hidden_size": 12, "num_layers": 2, "num_heads": 3, "seq_length": LENGTH}, "data": DATA, **MODELS[name]}
    model = randomised(build_model(Preset.model_validate(raw), VOCABULARY), torch.float64)
    whole, expected = loss(model, batch, [LENGTH])
    for cuts in ([1, 50, 0, 13, 32], [1] * LENGTH):
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
