"""The model that ours is measured against: transformers' LlamaForCausalLM of the same shape, trained as is usual."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
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


class HyenaPeer(nn.Module):
    """Hyena as the paper writes it, on torch.fft and autograd: every convolution by one transform of twice the whole length."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, config = preset.model.hidden_size, preset.hyena
        self.order, self.length = config.order, config.filter_length or preset.model.seq_length
        self.project_in, self.project_out = nn.Linear(size, (self.order + 1) * size), nn.Linear(size, size)
        self.short = nn.Conv1d((self.order + 1) * size, (self.order + 1) * size, config.kernel_size, groups=(self.order + 1) * size)
        self.widths = [config.embedding_dim, config.filter_order, config.filter_order, config.filter_order, self.order * size]
        self.network = nn.ModuleList(nn.Linear(inner, outer) for inner, outer in zip(self.widths[:-1], self.widths[1:], strict=True))
        self.skip = nn.Parameter(torch.randn(self.order, size, 1))

    def taps(self, device: torch.device) -> torch.Tensor:
        place = torch.linspace(0, 1, self.length, device=device)[:, None]
        turns = 2 * torch.pi * place * torch.arange(1, self.widths[0] // 2 + 1, device=device)
        x = torch.cat([place, turns.cos(), turns.sin()], 1)
        for layer in self.network[:-1]:
            x = (14 * layer(x)).sin()
        rates = torch.linspace(15.35, 3.07, self.skip.shape[1], device=device).repeat(self.order)
        return (self.network[-1](x) * ((-place * rates).exp() + 0.05)).T.unflatten(0, (self.order, -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time = x.shape[1]
        streams = self.short(F.pad(self.project_in(x).mT, (self.short.kernel_size[0] - 1, 0)))
        z, *gates = streams.chunk(self.order + 1, 1)
        for gate, taps, skip in zip(gates, self.taps(x.device)[..., :time], self.skip, strict=True):
            filtered = torch.fft.irfft(torch.fft.rfft(z, 2 * time) * torch.fft.rfft(taps, 2 * time), 2 * time)[..., :time]
            z = gate * (filtered + skip * z)
        return self.project_out(z.mT)


# Independent modules (1, T, D) -> (1, T, D) of the same shape, by unit; what each is stands in its docstring.
UNIT_PEERS: dict[str, Callable[[Preset], nn.Module]] = {"hyena": HyenaPeer}
