"""What transformers is told of the model: vocabulary, special tokens, the layer plan, and the switches that shaped it."""

from typing import Any

from transformers import PreTrainedConfig

from lm.export.remote.preset import Preset


class PerennialConfig(PreTrainedConfig):
    """`plan`: the unit names of each layer; `options`: what is made of each; `sections`: the sections of the preset that shape a model, every
    switch written out; `at_layers`: those that are others for the units of each layer; `loss_weights`: what each named loss of the units counts
    in training."""

    model_type = "perennial"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int | None = None
    plan: list[list[str]] | None = None
    options: list[list[Any]] | None = None
    at_layers: list[dict[str, dict[str, Any]]] | None = None
    sections: dict[str, dict[str, Any]] | None = None
    loss_weights: dict[str, float] | None = None
    bos_token_id: int | None = None
    eos_token_id: int | None = None
    pad_token_id: int | None = None
    use_cache: bool = True
    tie_word_embeddings: bool = False  # the model ties them by itself: it has one table or two

    @property
    def preset(self) -> Preset:
        return Preset(self.sections, self.plan, self.options, self.at_layers)

    # The names by which other libraries ask.

    @property
    def hidden_size(self) -> int:
        return self.sections["model"]["hidden_size"]

    @property
    def num_hidden_layers(self) -> int:
        return len(self.plan)

    @property
    def num_attention_heads(self) -> int:
        return self.sections["model"]["num_heads"]

    @property
    def max_position_embeddings(self) -> int:
        """Tokens in a row of training. Longer texts can be read."""
        return self.sections["model"]["seq_length"]
