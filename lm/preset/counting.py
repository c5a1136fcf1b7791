"""How many parameters a preset's model has, in closed form, so that the menu knows before torch is imported."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

from lm.preset.mechanisms import RoutedMechanism
from lm.preset.options import layer_options
from lm.preset.plan import at_layer, depths_layers, layer_plan, reads_both_ways
from lm.preset.switches import Preset
from lm.preset.widths import OUTPUT_WIDTHS


class ParameterCount(NamedTuple):
    """Trainable numbers: in the vocabulary's matrices (embedding and output) and in all the rest; of that, those that a token leaves aside: other
    tokens' experts, heavy branches and layers, on the average over tokens."""

    vocabulary: int
    trunk: int
    idle: int = 0

    @property
    def total(self) -> int:
        return self.vocabulary + self.trunk

    @property
    def active(self) -> int:
        """Those that one token uses, on the average."""
        return self.total - self.idle


def _attention(preset: Preset) -> int:
    return _heads(preset, preset.model.num_heads, preset.model.kv_heads)


def _heads(preset: Preset, heads: int, kv_heads: int) -> int:
    model = preset.model
    return 2 * model.hidden_size * (heads + kv_heads) * model.head_size + (2 * model.head_size if model.qk_norm else 0)


def _swiglu(preset: Preset) -> int:
    return 3 * preset.model.hidden_size * preset.model.feed_forward_size


def _relu2(preset: Preset) -> int:
    return 2 * preset.model.hidden_size * preset.model.feed_forward_size


def _rwkv(preset: Preset) -> int:
    size, section = preset.model.hidden_size, preset.rwkv
    vectors = 10  # six mixes, decay, bonus, and the norm's weight and bias
    return size * (5 * size + 2 * 5 * section.mix_rank + 2 * section.decay_rank + vectors)


def _rwkv_channel(preset: Preset) -> int:
    size = preset.model.hidden_size
    return size * (2 * preset.model.channel_mix_size + size + 2)


def _s5(preset: Preset) -> int:
    hidden, states = preset.model.hidden_size, preset.s5.state_size // 2
    return 3 * states + 4 * states * hidden + hidden + 2 * hidden**2


def _hyena(preset: Preset) -> int:
    size, hyena = preset.model.hidden_size, preset.hyena
    order, width = hyena.order, hyena.filter_order
    projections = (order + 2) * size * size + (order + 1) * size * hyena.kernel_size
    network = (hyena.embedding_dim + 1) * width + 2 * (width + 1) * width + width * order * size
    return projections + network + order * size


def _deltanet(preset: Preset) -> int:
    size, heads, section = preset.model.hidden_size, preset.model.num_heads, preset.deltanet
    key, value = (width or preset.model.head_size for width in (section.key_size, section.value_size))
    streams = heads * (2 * key + value) * (size + section.kernel_size)
    rates = heads * (size + section.gated * (size + 2))
    return streams + rates + (1 + section.output_gate) * size * heads * value + value


def _mamba2(preset: Preset) -> int:
    size, config = preset.model.hidden_size, preset.mamba2
    channels = config.expand * size
    heads = channels // (config.head_size or preset.model.head_size)
    streams = channels + 2 * config.groups * config.state_size
    return size * (channels + streams + heads) + streams * (config.kernel_size + 1) + 3 * heads + channels + channels * size


def _gla(preset: Preset) -> int:
    size, config = preset.model.hidden_size, preset.gla
    keys = preset.model.num_heads * (config.key_size or -(-preset.model.head_size // 2))
    return 3 * size * size + 2 * size * keys + (size + keys) * config.decay_rank + keys + size


def _shared_attention(preset: Preset) -> int:
    model, norm = preset.model, preset.model.head_size * preset.model.qk_norm
    own = 2 * model.hidden_size * model.num_heads * model.head_size + norm
    return own + (2 * model.hidden_size * model.kv_heads * model.head_size + norm) * preset.shared_attention.owns


def _retro(preset: Preset) -> int:
    model = preset.model
    places = (preset.retro.chunk_size + 1) * model.hidden_size if model.position == "learned" else 0
    return 2 * model.hidden_size**2 + _neighbour_keys(preset) + 2 * model.head_size * model.qk_norm + places


def _neighbour_keys(preset: Preset) -> int:
    """Of what makes keys and values of neighbours."""
    return 2 * _encoder_size(preset) * preset.model.kv_heads * preset.model.head_size


def _encoder_size(preset: Preset) -> int:
    head = preset.model.head_size
    return preset.retro.encoder_size or -(-preset.model.hidden_size // (2 * head)) * head


def _neighbour_encoder(preset: Preset) -> int:
    """Of the network that reads neighbours for all layers of retro."""
    model, size = preset.model, _encoder_size(preset)
    block = 4 * size**2 + 3 * size * (-(-8 * size // (3 * 32)) * 32) + 2 * size + 2 * model.head_size * model.qk_norm
    places = 2 * preset.retro.chunk_size * size if model.position == "learned" else 0
    narrowing = model.hidden_size * size if size != model.hidden_size else 0
    return narrowing + preset.retro.encoder_layers * block + size + places


def _moe(preset: Preset) -> int:
    return _moe_expert(preset) * (preset.moe.experts + preset.moe.shared_experts) + preset.model.hidden_size * preset.moe.experts


def _moe_idle(preset: Preset) -> int:
    return _moe_expert(preset) * (preset.moe.experts - preset.moe.experts_per_token)


def _moe_expert(preset: Preset) -> int:
    config = preset.moe
    width = config.expert_size or -(-preset.model.swiglu_size // (8 * (config.experts_per_token + config.shared_experts))) * 8
    return 3 * preset.model.hidden_size * width


def _router(preset: Preset, section: RoutedMechanism) -> int:
    size = preset.model.hidden_size
    width = section.router_size or max(8, -(-size // 8))
    return (size + 1) * width if section.router_type == "mlp" else size


def _colt5(preset: Preset) -> int:
    light = preset.colt5.light_size or -(-preset.model.swiglu_size // 2)
    return 3 * preset.model.hidden_size * light + _colt5_heavy(preset) + _router(preset, preset.colt5)


def _colt5_heavy(preset: Preset) -> int:
    return 3 * preset.model.hidden_size * (preset.colt5.heavy_size or 2 * preset.model.swiglu_size)


def _colt5_attention(preset: Preset) -> int:
    section = preset.colt5_attention
    light = section.light_heads or -(-preset.model.num_heads // 4)
    return _attention(preset) + _heads(preset, light, light) + _router(preset, section)


UNIT_COUNTS: dict[str, Callable[[Preset], int]] = {
    "attention": _attention,
    "longformer": _attention,
    "s5": _s5,
    "hyena": _hyena,
    "rwkv": _rwkv,
    "rwkv_channel": _rwkv_channel,
    "deltanet": _deltanet,
    "mamba2": _mamba2,
    "gla": _gla,
    "shared_attention": _shared_attention,
    "retro": _retro,
    "moe": _moe,
    "colt5_attention": _colt5_attention,
    "colt5": _colt5,
    "swiglu": _swiglu,
    "relu2": _relu2,
}
IDLE_COUNTS: dict[str, Callable[[Preset], float]] = {  # what a token leaves aside, on the average
    "moe": _moe_idle,
    "colt5": lambda preset: (1 - preset.colt5.budget) * _colt5_heavy(preset),
    "colt5_attention": lambda preset: (1 - preset.colt5_attention.budget) * _attention(preset),
}


def count_parameters(preset: Preset, vocab_size: int) -> ParameterCount:
    """Parameters of the model that build_model(preset, vocab_size) gives."""
    model = preset.model
    units, layers = list(_units(preset)), [at_layer(preset, depth) for depth in range(model.num_layers)]
    norms = (len(units) + 1) * model.hidden_size
    positions = model.seq_length * model.hidden_size if model.position == "learned" else 0
    vocabulary = vocab_size * model.hidden_size * (1 if model.tie_embeddings else 2)
    trunk, used = (sum(numbers) for numbers in zip(*units, strict=True))
    routers = len(depths_layers(preset)) * _router(preset, preset.mixture_of_depths)
    rest = norms + positions + routers + _neighbour_encoder(preset) * bool(_retro_layers(preset)) + _options(preset, layers)
    return ParameterCount(vocabulary, trunk + rest, round(trunk - used))


def _units(preset: Preset) -> Iterator[tuple[int, float]]:
    """Numbers that each unit has, and how many of them a token uses on the average."""
    for depth, (layer, share) in enumerate(zip(layer_plan(preset), _readers(preset), strict=True)):
        at = at_layer(preset, depth)
        for name in layer:
            count = UNIT_COUNTS[name](at) * (2 if preset.model.bidirectional == "own" and reads_both_ways(name) else 1)
            yield count, share * (count - (IDLE_COUNTS[name](at) if name in IDLE_COUNTS else 0))


def _readers(preset: Preset) -> list[float]:
    """The share of tokens that read each layer."""
    some = depths_layers(preset)
    return [preset.mixture_of_depths.share if depth in some else 1.0 for depth in range(preset.model.num_layers)]


def _retro_layers(preset: Preset) -> int:
    return sum("retro" in layer for layer in layer_plan(preset))


def _ffn_head(preset: Preset, width: int, out: int) -> int:
    return preset.model.hidden_size * width + width * out


def _wide_as_the_model(preset: Preset) -> int:
    return _ffn_head(preset, preset.model.hidden_size, preset.model.hidden_size)


def _dynamics(preset: Preset) -> int:
    size = preset.model.hidden_size
    return 3 * size * (preset.auxiliary.dynamics_size or 2 * size) + 2 * size


HEAD_COUNTS: dict[str, Callable[[Preset], int]] = {
    "second_next": _wide_as_the_model,
    "reconstruction": _wide_as_the_model,
    "value": lambda preset: _ffn_head(preset, preset.auxiliary.value_size or preset.model.hidden_size, 1),
    "dynamics": _dynamics,
    "policy": lambda preset: _ffn_head(preset, preset.auxiliary.policy_size or -(-preset.model.hidden_size // 2), preset.model.hidden_size),
    "latent_consistency": lambda preset: _wide_as_the_model(preset) + preset.model.hidden_size,
    "span_contrastive": lambda preset: 2 * preset.model.hidden_size * preset.auxiliary.span_size,
}


def count_heads(preset: Preset) -> int:
    """Parameters of the heads that train the model and are no part of it."""
    return sum(HEAD_COUNTS[name](preset) for name in preset.auxiliary.heads)


def _options(preset: Preset, layers: list[Preset]) -> int:
    """A gate sees all of what it gates and has a bias; each layer has a scale for each channel of what is shared; mixed values have a share."""
    options = layer_options(preset)
    gates = sum(
        groups * (OUTPUT_WIDTHS[name](at) + 1)
        for at, units, option in zip(layers, layer_plan(preset), options, strict=True)
        for name, groups in zip(units, option.gates, strict=True)
        if groups
    )
    sharing = sum(bool(option.shared_width) for option in options)
    mixed = sum(option.values.count("mixed") for option in options)
    return gates + mixed + preset.model.hidden_size * sharing + _shared_matrices(preset)


def _shared_matrices(preset: Preset) -> int:
    """Of the feed-forward that layers share."""
    matrices = 3 if preset.model.activation == "swiglu" else 2
    return matrices * preset.model.hidden_size * max(option.shared_width for option in layer_options(preset))


def operations_per_token(preset: Preset, vocab_size: int, row_length: int | None = None) -> float:
    """Floating point operations of a training step for each token of a row, which is as long as model.seq_length where nothing else is said: 6 for each
    number that it uses (2 forward, 4 back), as often as it does, and attention's products, 12 for each earlier token and channel, of which causality
    leaves half (Chowdhery et al. 2022, appendix B). What recurrences and windows do beside their matrices is left out."""
    count, model = count_parameters(preset, vocab_size), preset.model
    looked_up = 0 if model.tie_embeddings else vocab_size * model.hidden_size
    attending = sum(
        share**2 * (name in ("attention", "shared_attention")) for layer, share in zip(layer_plan(preset), _readers(preset), strict=True) for name in layer
    )
    used = count.active - looked_up + _used_again(preset)
    return 6.0 * used + 6.0 * attending * model.num_heads * model.head_size * (row_length or model.seq_length)


def _used_again(preset: Preset) -> float:
    """Numbers that a token uses once more, as often as it does: those that layers share, those that read from both ends, and those that read
    neighbours, of which a chunk has some of twice its length each."""
    sharing = sum(share for share, option in zip(_readers(preset), layer_options(preset), strict=True) if option.shared_width)
    shared = max(sharing - 1, 0) * _shared_matrices(preset)
    both = sum(UNIT_COUNTS[name](preset) for layer in layer_plan(preset) for name in layer if reads_both_ways(name)) * (preset.model.bidirectional == "shared")
    retro = _retro_layers(preset)
    neighbours = (2 * preset.retro.num_neighbors - 1) * (_neighbour_encoder(preset) * bool(retro) + _neighbour_keys(preset) * retro)
    return shared + both + neighbours
