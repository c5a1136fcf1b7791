"""What ours is measured against: transformers' LlamaForCausalLM of the same shape, trained as is usual, and published units."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from s5 import S5 as PublishedS5
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from data_sources import Batch
from lm.preset import Preset


def llama_of(preset: Preset, vocab_size: int) -> LlamaForCausalLM:
    """Llama with the sizes of `preset`, tied like it, with torch's fused attention."""
    model = preset.model
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=model.feed_forward_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=model.seq_length,
        tie_word_embeddings=model.tie_embeddings,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def llama_loss(llama: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross entropy in nats of the batch's targets: the same as ours are scored on."""
    logits = llama(input_ids=batch.tokens, use_cache=False).logits
    return F.cross_entropy(logits.float().flatten(0, 1), batch.targets.flatten())


def stepper(module: nn.Module, loss: Callable[[Batch], torch.Tensor], learning_rate: float) -> Callable[[Batch, float], float]:
    """A function that takes one AdamW step (betas 0.9 and 0.95, decay 0.1 on matrices, clipping 1.0) and gives the loss."""
    groups = [{"params": [p for p in module.parameters() if p.ndim >= 2], "weight_decay": 0.1}]
    groups += [{"params": [p for p in module.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)

    def step(batch: Batch, factor: float = 1.0) -> float:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * factor
        value = loss(batch)
        value.backward()
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return value.item()

    return step


class S5Peer(nn.Module):
    """s5-pytorch's state space, of as many kept states as ours, with the paper's gate and a projection after it."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, config = preset.model.hidden_size, preset.s5
        kept = config.state_size // 2
        self.space = PublishedS5(size, state_width=kept, block_count=config.blocks, dt_min=config.dt_min, dt_max=config.dt_max)
        self.gate, self.output = nn.Linear(size, size, bias=False), nn.Linear(size, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.space(x))
        return self.output(y * self.gate(y).sigmoid())


# Independent modules (1, T, D) -> (1, T, D) of the same shape, by unit; what each is stands in its docstring.
UNIT_PEERS: dict[str, Callable[[Preset], nn.Module]] = {"s5": S5Peer}
