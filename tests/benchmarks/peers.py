"""What ours is measured against: transformers' LlamaForCausalLM and GPT2LMHeadModel of the same shape, trained as is usual; and a peer for each unit."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from s5 import S5 as PublishedS5
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, LongformerConfig, Mamba2Config
from transformers.models.longformer.modeling_longformer import LongformerSelfAttention
from transformers.models.mamba2.modeling_mamba2 import Mamba2Mixer
from transformers.models.qwen3_next.configuration_qwen3_next import Qwen3NextConfig
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextGatedDeltaNet

from data_sources import Batch
from lm.preset import Preset
from lm.units.neighbours import encoder_size


def llama_of(preset: Preset, vocab_size: int, ffn_size: int | None = None) -> LlamaForCausalLM:
    """Llama with the sizes of `preset` (ffn_size: another width of its feed-forward), tied like it, with torch's fused attention."""
    model = preset.model
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=model.hidden_size,
        intermediate_size=ffn_size or model.swiglu_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=model.num_heads,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=model.seq_length,
        tie_word_embeddings=model.tie_embeddings,
        attn_implementation="sdpa",
    )
    return LlamaForCausalLM(config)


def gpt2_of(preset: Preset, vocab_size: int, ffn_size: int | None = None) -> GPT2LMHeadModel:
    """GPT-2 with the sizes of `preset` (ffn_size: another width of its feed-forward than four times the model's), without dropout, as nanoGPT has it."""
    model = preset.model
    config = GPT2Config(
        vocab_size=vocab_size,
        n_positions=model.seq_length,
        n_embd=model.hidden_size,
        n_layer=model.num_layers,
        n_head=model.num_heads,
        n_inner=ffn_size,
        tie_word_embeddings=model.tie_embeddings,
        attn_implementation="sdpa",
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
        **dict.fromkeys(("bos_token_id", "eos_token_id")),  # none of this vocabulary
    )
    return GPT2LMHeadModel(config)


def of_size(make: Callable[[Preset, int, int | None], nn.Module], preset: Preset, vocab_size: int, parameters: int) -> nn.Module:
    """The peer that `make` builds, its feed-forward as wide as comes nearest to so many parameters."""
    with torch.device("meta"):
        narrow, wide = (count(make(preset, vocab_size, width)) for width in (64, 128))
    return make(preset, vocab_size, max(1, round(64 + 64 * (parameters - narrow) / (wide - narrow))))


def count(module: nn.Module) -> int:
    """Of its parameters, a shared one once."""
    return sum(parameter.numel() for parameter in module.parameters())


def peer_loss(peer: nn.Module, batch: Batch) -> torch.Tensor:
    """Mean cross entropy in nats of the batch's targets: the same as ours are scored on."""
    logits = peer(input_ids=batch.tokens, use_cache=False).logits
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


class NaiveRwkv(nn.Module):
    """RWKV-6's time mix as its authors write it for the CPU: a loop over tokens, between the same projections."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, self.heads, ranks = preset.model.hidden_size, preset.model.num_heads, preset.rwkv
        self.first, self.shares = nn.Parameter(torch.rand(size)), nn.Parameter(torch.rand(5, 1, 1, size))
        self.down, self.up = nn.Linear(size, 5 * ranks.mix_rank, bias=False), nn.Parameter(0.02 * torch.randn(5, 1, ranks.mix_rank, size))
        self.speed = nn.Sequential(nn.Linear(size, ranks.decay_rank, bias=False), nn.Tanh(), nn.Linear(ranks.decay_rank, size))
        self.projections = nn.ModuleList(nn.Linear(size, size, bias=False) for _ in range(4))
        self.bonus = nn.Parameter(torch.rand(self.heads, size // self.heads, 1))
        self.norm, self.output = nn.GroupNorm(self.heads, size, eps=64e-5), nn.Linear(size, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change = F.pad(x, (0, 0, 1, -1)) - x
        low = torch.stack(torch.tanh(self.down(x + change * self.first)).chunk(5, -1))
        streams = x + change * (self.shares + low @ self.up)
        decay = torch.exp(-torch.exp(self.speed(streams[0])))
        receptance, key, value, gate = (project(stream) for project, stream in zip(self.projections, streams[1:], strict=True))
        receptance, key, value, decay = (y.unflatten(-1, (self.heads, -1)) for y in (receptance, key, value, decay))
        memory = x.new_zeros(len(x), self.heads, key.shape[-1], key.shape[-1])
        read = []
        for r, k, v, w in zip(*(y.unbind(1) for y in (receptance, key, value, decay)), strict=True):
            written = k[..., None] * v[..., None, :]
            read.append(r[..., None, :] @ (memory + self.bonus * written))
            memory = w[..., None] * memory + written
        y = self.norm(torch.stack(read, 1).flatten(0, 1).flatten(1)).view_as(x)
        return self.output(y * F.silu(gate))


class PlainRwkvChannel(nn.Module):
    """RWKV-6's channel mix as its authors write it."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, width = preset.model.hidden_size, preset.model.channel_mix_size
        self.shares = nn.Parameter(torch.rand(2, size))
        self.key, self.value = nn.Linear(size, width, bias=False), nn.Linear(width, size, bias=False)
        self.receptance = nn.Linear(size, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        change = F.pad(x, (0, 0, 1, -1)) - x
        key = torch.relu(self.key(x + change * self.shares[0])) ** 2
        return torch.sigmoid(self.receptance(x + change * self.shares[1])) * self.value(key)


class RetroPeer(nn.Module):
    """Cross-attention of every token to all neighbours that came to its row, under a mask: those of the chunk before, whole."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        self.size, self.heads, section = preset.model.hidden_size, preset.model.num_heads, preset.retro
        self.chunk, self.slots, self.width = section.chunk_size, 2 * section.num_neighbors * section.chunk_size, encoder_size(preset)
        self.query, self.output = nn.Linear(self.size, self.size, bias=False), nn.Linear(self.size, self.size, bias=False)
        self.key_value = nn.Linear(self.width, 2 * self.size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        chunks = (x.shape[1] - 1) // self.chunk
        if not chunks:
            return self.output(self.query(x))
        encoded = torch.randn(len(x), chunks * self.slots, self.width, device=x.device)
        key, value = self.key_value(encoded).chunk(2, -1)
        query, key, value = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in (self.query(x), key, value))
        before = torch.arange(x.shape[1], device=x.device)[:, None] // self.chunk - 1
        mask = torch.arange(chunks * self.slots, device=x.device) // self.slots == before.clamp(min=0)
        return self.output(F.scaled_dot_product_attention(query, key, value, attn_mask=mask).transpose(1, 2).flatten(2))


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


class DeltanetPeer(nn.Module):
    """transformers' Qwen3NextGatedDeltaNet on plain torch: chunks of 64, of as many heads as ours and as wide."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        model, section = preset.model, preset.deltanet
        config = Qwen3NextConfig(
            hidden_size=model.hidden_size,
            num_hidden_layers=1,
            layer_types=["linear_attention"],
            linear_num_key_heads=model.num_heads,
            linear_num_value_heads=model.num_heads,
            linear_key_head_dim=section.key_size or model.head_size,
            linear_value_head_dim=section.value_size or model.head_size,
            linear_conv_kernel_dim=section.kernel_size,
        )
        self.mixer = Qwen3NextGatedDeltaNet(config, layer_idx=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(x)


class Mamba2Peer(nn.Module):
    """transformers' Mamba2Mixer on plain torch."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        model, config = preset.model, preset.mamba2
        head_size = config.head_size or model.head_size
        heads = config.expand * model.hidden_size // head_size
        sizes = {"hidden_size": model.hidden_size, "expand": config.expand, "head_dim": head_size, "num_heads": heads}
        sizes |= {"state_size": config.state_size, "n_groups": config.groups, "conv_kernel": config.kernel_size}
        self.mixer = Mamba2Mixer(Mamba2Config(num_hidden_layers=1, **sizes), layer_idx=0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.mixer(x)


class NaiveGla(nn.Module):
    """Gated linear attention as the paper's recurrence says: a loop over tokens, between the same projections."""

    def __init__(self, preset: Preset) -> None:
        super().__init__()
        size, self.heads, config = preset.model.hidden_size, preset.model.num_heads, preset.gla
        keys = self.heads * (config.key_size or -(-preset.model.head_size // 2))
        self.projections = nn.ModuleList(nn.Linear(size, width, bias=False) for width in (keys, keys, size))
        self.speed = nn.Sequential(nn.Linear(size, config.decay_rank, bias=False), nn.Linear(config.decay_rank, keys))
        self.gate, self.norm, self.output = nn.Linear(size, size, bias=False), nn.RMSNorm(size // self.heads), nn.Linear(size, size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        query, key, value, raw = (y.unflatten(-1, (self.heads, -1)) for y in (*(project(x) for project in self.projections), self.speed(x)))
        memory = x.new_zeros(len(x), self.heads, key.shape[-1], value.shape[-1])
        read = []
        for q, k, v, a in zip(*(y.unbind(1) for y in (query, key, value, torch.exp(F.logsigmoid(raw) / 16))), strict=True):
            memory = a[..., None] * memory + k[..., None] * v[..., None, :]
            read.append(q[..., None, :] @ memory)
        return self.output(self.norm(torch.stack(read, 1).squeeze(-2)).flatten(2) * F.silu(self.gate(x)))


# Independent modules (1, T, D) -> (1, T, D) of the same shape, by unit; what each is stands in its docstring.
UNIT_PEERS: dict[str, Callable[[Preset], nn.Module]] = {
    "longformer": LongformerPeer,
    "s5": S5Peer,
    "hyena": HyenaPeer,
    "rwkv": NaiveRwkv,
    "deltanet": DeltanetPeer,
    "rwkv_channel": PlainRwkvChannel,
    "mamba2": Mamba2Peer,
    "gla": NaiveGla,
    "retro": RetroPeer,
}
