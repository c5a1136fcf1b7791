"""The files of an exported folder that say what the model is: config, generation, tokenizer. All of it from the snapshot."""

import json
from typing import Any

from tokenizers import Tokenizer, processors

from data_sources.config import Config
from lm.export.sources import ENTRIES
from lm.preset import Preset, at_layer, depths_layers, layer_options, layer_plan
from lm.preset.mechanisms import LayerMechanism
from lm.preset.switches import GenerationConfig, ModelConfig
from lm.training.snapshots import Snapshot


def written_json(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def config(snapshot: Snapshot) -> dict[str, Any]:
    """config.json."""
    table, preset = snapshot.model_weights["embedding.weight"], snapshot.preset
    return {
        "architectures": [ENTRIES["AutoModelForCausalLM"].split(".")[1]],
        "auto_map": ENTRIES,
        "model_type": "perennial",
        "dtype": str(table.dtype).removeprefix("torch."),
        "vocab_size": len(table),
        **special_ids(snapshot.tokenizer),
        "plan": layer_plan(preset),
        "options": layer_options(preset),
        "sections": sections(preset),
        "at_layers": [changes(preset, layer) for layer in range(preset.model.num_layers)],
        "loss_weights": {name: weight for name, weight in preset.loss_weights.items() if name not in preset.auxiliary.loss_weights},
    }


def sections(preset: Preset) -> dict[str, dict[str, Any]]:
    """The sections that can shape a model: every switch, and what follows from them (the width of a head, say)."""
    found = {name: getattr(preset, name) for name in type(preset).model_fields}
    shaping = {name: resolved(section) for name, section in found.items() if isinstance(section, ModelConfig | LayerMechanism)}
    shaping["mixture_of_depths"]["layers"] = depths_layers(preset)
    return shaping


def changes(preset: Preset, layer: int) -> dict[str, dict[str, Any]]:
    """What is otherwise in the sections for the units of one layer."""
    here, there = sections(at_layer(preset, layer)), sections(preset)
    different = {name: {switch: value for switch, value in here[name].items() if value != there[name][switch]} for name in here}
    return {name: values for name, values in different.items() if values}


def resolved(section: Config) -> dict[str, Any]:
    """Switches of `section` and its properties by name, as JSON has them."""
    kinds = [kind for kind in type(section).__mro__ if issubclass(kind, Config)]
    properties = [name for kind in kinds for name, member in vars(kind).items() if isinstance(member, property)]
    return section.model_dump(mode="json") | {name: getattr(section, name) for name in properties}


def generation_config(settings: GenerationConfig, tokenizer: str) -> dict[str, Any]:
    """generation_config.json: the preset's way of writing. `top_k` is switched off, which transformers would have at 50."""
    draws = {"temperature": settings.temperature, "top_p": settings.top_p, "top_k": 0} if settings.temperature else {}
    rules = {"repetition_penalty": settings.repetition_penalty, "no_repeat_ngram_size": settings.no_repeat_ngram}
    ends = {"eos_token_id": ends_of(tokenizer)}  # as in chat, where each of them ends what is written
    return {"do_sample": bool(settings.temperature), **draws, **rules, "max_new_tokens": settings.max_new_tokens, **special_ids(tokenizer), **ends}


def ends_of(tokenizer: str) -> list[int]:
    """Ids of all tokens that stand for no text, those of gaps and modes among them."""
    added = Tokenizer.from_str(json.dumps(json.loads(tokenizer)["tokenizer"])).get_added_tokens_decoder()
    return sorted({number for number, token in added.items() if token.special} | set(_special_ids(tokenizer).values()))


def special_ids(tokenizer: str) -> dict[str, int]:
    """Ids of the beginning, the end and padding, by transformers' names. `tokenizer`: the JSON text of a snapshot."""
    ids = _special_ids(tokenizer)
    return {f"{name}_id": ids[name] for name in ("bos_token", "eos_token", "pad_token")}


def _special_ids(tokenizer: str) -> dict[str, int]:
    held = json.loads(tokenizer)
    own = Tokenizer.from_str(json.dumps(held["tokenizer"]))
    return {name: own.token_to_id(token) for name, token in held["special"].items()}


def tokenizer_files(tokenizer: str) -> dict[str, str]:
    """tokenizer.json and tokenizer_config.json: text becomes the tokens that training read, a beginning first, special tokens typed out as text."""
    held = json.loads(tokenizer)
    own = Tokenizer.from_str(json.dumps(held["tokenizer"]))
    start = held["special"]["bos_token"]
    template = processors.TemplateProcessing(single=[start, "$A"], pair=[start, "$A", "$B:1"], special_tokens=[(start, own.token_to_id(start))])
    own.post_processor = template
    how = {"padding_side": "left", "split_special_tokens": True, "clean_up_tokenization_spaces": False, "model_input_names": ["input_ids", "attention_mask"]}
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    return {"tokenizer.json": own.to_str(pretty=True), "tokenizer_config.json": written_json({**kind, **held["special"], **how})}
