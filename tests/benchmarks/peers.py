"""What ours is measured against: the model, transformers' LlamaForCausalLM of the same shape, trained as is usual; and a peer for each unit."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, LongformerConfig
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention

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


class LongformerPeer(nn.Module):
    """transformers' LongformerSelfAttention without global tokens, and an output projection. It sees the window to both sides, and has no positions."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, self.block = preset.model.hidden_size, 2 * preset.longformer.window
        config = LongformerConfig(hidden_size=size, num_attention_heads=preset.model.num_heads, attention_window=[self.block], attention_probs_dropout_prob=0.0)
        self.attention = LongformerSelfAttention(config, layer_id=0)
        self.output = nn.Linear(size, size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time = x.shape[1]
        beyond = (torch.arange(-(-time // self.block) * self.block, device=x.device) >= time)[None]
        whole = F.pad(x, (0, 0, 0, beyond.shape[1] - time))
        y = self.attention(whole, -10_000.0 * beyond, is_index_masked=beyond, is_index_global_attn=beyond & False, is_global_attn=False)[0]
        return self.output(y[:, :time])


# Independent modules (1, T, D) -> (1, T, D) of the same shape, by unit; what each is stands in its docstring.
UNIT_PEERS: dict[str, Callable[[Preset], nn.Module]] = {"longformer": LongformerPeer}
