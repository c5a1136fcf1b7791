"""The model as transformers knows models. What it computes is in model.py and units.py; here are only the names that transformers uses.

A cache is the model's own state. It is never changed: each call gives a new one, and an older one is still good.
A memory that the model was trained with is not here: no neighbours are handed in, and what attends to them adds exactly nothing.

Sizes: B rows, T tokens, V vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers.generation.logits_process import NoRepeatNGramLogitsProcessor, RepetitionPenaltyLogitsProcessor
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import can_return_tuple

from lm.export.remote.configuration_perennial import PerennialConfig
from lm.model import Context, ModelState, build_model


class PerennialCache:
    """The state after `length` columns of tokens, padding counted."""

    is_compileable = is_croppable = False  # transformers asks

    def __init__(self, state: ModelState, length: int) -> None:
        self.state, self.length = state, length

    def get_seq_length(self) -> int:
        return self.length

    def rows(self, index: Tensor) -> "PerennialCache":
        """The rows of `index` (N,), in its order."""
        return PerennialCache(tree_map(lambda tensor: tensor.index_select(0, index.to(tensor.device)), self.state), self.length)


class SparesSpecials(LogitsProcessor):
    """A rule about what was written before, for text alone: it falls on no special token, least of all on the one that ends a text."""

    def __init__(self, rule: LogitsProcessor, specials: Tensor) -> None:
        self.rule, self.specials = rule, specials

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        specials = self.specials.to(scores.device)
        kept = scores[:, specials]
        return self.rule(input_ids, scores).index_copy(1, specials, kept)


def beginnings(attention_mask: Tensor | None, read: int, time: int) -> Tensor | None:
    """(B, time) bool: where text begins after padding in the newest `time` columns, `read` others being read before. None: nowhere.

    The mask (B, read + time) is 0 on padding; (B, time) tells of the new columns alone. ValueError for text on both sides of padding:
    a state holds all that was read, so padding can only be forgotten together with what came before it.
    """
    if attention_mask is None:
        return None
    if attention_mask.ndim != 2 or attention_mask.shape[1] not in (time, read + time):
        raise ValueError(f"attention_mask is {tuple(attention_mask.shape)}; it takes a row of {read + time} for all tokens read so far, or {time} for the new")
    text = attention_mask.bool()
    began = text & ~text.roll(1, 1)
    began[:, :1] = False
    before = text.cumsum(1) > 1 if text.shape[1] == read + time else torch.ones_like(text)
    if (began & before).any():
        raise ValueError("text stands on both sides of padding in a row of attention_mask: pad at the left, and give the mask of all tokens read so far")
    began = began[:, text.shape[1] - time :]
    return began if began.any() else None


class PerennialForCausalLM(PreTrainedModel, GenerationMixin):
    """`model` with a loss, a cache and `generate`."""

    config_class = PerennialConfig
    accepts_loss_kwargs = True
    _is_stateful = True  # a cache can't be cut back, and transformers says so where it would have to

    def __init__(self, config: PerennialConfig) -> None:
        super().__init__(config)
        self.model = build_model(config.preset, config.vocab_size)
        self.post_init()

    def init_weights(self) -> None:
        """First weights are drawn by build_model."""
        self.tie_weights(recompute_mapping=False)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.model.embedding = value

    def get_output_embeddings(self) -> nn.Linear | None:
        """None where the input table serves."""
        return self.model.output

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        self.model.output = new_embeddings

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        past_key_values: PerennialCache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
    ) -> CausalLMOutputWithPast:
        """Read `input_ids` (B, T) after what `past_key_values` holds.

        attention_mask: see `beginnings`. labels: (B, T), the tokens themselves, -100 where nothing is scored; the loss is the mean in
        nats of each next token, and in training mode the units' own losses are added, weighted as they were when the model was made.
        logits_to_keep: only the last so many logits, all when 0. ValueError where the mask or the cache does not fit.
        """
        rows, time = input_ids.shape
        past = past_key_values
        if past is not None and len(past.state.position) != rows:
            raise ValueError(f"past_key_values holds {len(past.state.position)} rows, input_ids {rows}")
        if logits_to_keep == 1 and attention_mask is not None and not attention_mask[:, -1].all():
            raise ValueError('a row ends with padding, which nothing follows: pad at the left to generate (tokenizer.padding_side = "left")')
        read = past.length if past else 0
        keeps = self.config.use_cache and not self.training if use_cache is None else use_cache
        state = past.state if past else self.model.initial_state(rows) if keeps else None
        scored = None if labels is None else F.pad(labels[:, 1:], (0, 1), value=-100) >= 0
        out = self.model(input_ids, state, Context(restart=beginnings(attention_mask, read, time), is_text=scored))
        logits = self.model.readout.logits(out.hidden[:, -logits_to_keep:])
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, self.config.vocab_size, num_items_in_batch=num_items_in_batch)
            if self.training and out.losses:
                # Sums over micro-batches are divided by what all of them score: these, too.
                share = 1 if num_items_in_batch is None else scored.sum() / num_items_in_batch
                loss = loss + share * sum(self.config.loss_weights[name] * value for name, value in out.losses.items())
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=PerennialCache(out.state, read + time) if keeps else None)

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """The first call makes the cache."""
        return False

    def _reorder_cache(self, past_key_values: PerennialCache, beam_idx: Tensor) -> PerennialCache:
        return past_key_values.rows(beam_idx)

    def _merge_criteria_processor_list(self, default_list: list, custom_list: list) -> list:
        """Penalties as the model had them where it was made: special tokens are no text."""
        merged = super()._merge_criteria_processor_list(default_list, custom_list)
        if not isinstance(merged, LogitsProcessorList):
            return merged
        how = self.generation_config
        ends = how.eos_token_id if isinstance(how.eos_token_id, list) else [how.eos_token_id]
        specials = {how.bos_token_id, how.pad_token_id, *ends} - {None}
        penalties = (RepetitionPenaltyLogitsProcessor, NoRepeatNGramLogitsProcessor)
        return LogitsProcessorList(SparesSpecials(rule, torch.tensor([*specials])) if isinstance(rule, penalties) else rule for rule in merged)
