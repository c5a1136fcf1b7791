"""Presets are read strictly, and every error is one line that says where, what was found, what is allowed and what was meant."""

import json
from pathlib import Path
from typing import Any

import pytest

from lm.preset import PresetError, at_layer, layer_options, layer_plan, load_preset, model_in_words, plan_in_words, preset_from_json

MISSION_AUXILIARY = """
{
  "enable_policy": true, "enable_value": true, "enable_dynamics": true, "enable_span_contrastive": true,
  "policy_kl_weight": 0.05, "value_weight": 0.05, "dynamics_weight": 0.05, "span_contrastive_weight": 0.05,
  "span_mask_fraction": 0.15, "span_contrastive_temperature": 0.07, "span_l2_normalize": true,
  "enable_adaptive_sources": true, "adaptive_interval_tokens": 5000000, "adaptive_min_weight": 0.5,
  "adaptive_max_weight": 3.0, "adaptive_smoothing": 0.9
}
"""
MISSION_PRESET = r"""
{
  "name": "qa_plus_wiki",
  "model": {"hidden_size":256, "num_layers":3, "num_heads":4, "seq_length":256},
  "train": {"per_gpu_batch_size":128, "accumulation_steps":4, "eval_tokens":2000000},
  "data": {
    "sources": [
      {"type":"hf","dataset":"sentence-transformers/natural-questions","split":"train","fields":["question","answer"],"format":"Q: {question}\nA: {answer}"},
      "wikipedia"
    ],
    "mix_strategy": "round_robin",
    "min_text_length": 50
  }
}
"""


def decoded(**sections: Any) -> Any:
    return preset_from_json(json.dumps({"data": {"sources": ["wikipedia"]}} | sections), "x.json")


def refusal(**sections: Any) -> str:
    with pytest.raises(PresetError) as caught:
        decoded(**sections)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("x.json: ")
    return line.removeprefix("x.json: ")


def test_the_printed_preset_loads() -> None:
    preset = preset_from_json(MISSION_PRESET, "printed")
    assert preset.model.seq_length == 256
    assert preset.data.sources[0].columns == ("question", "answer")
    assert preset.data.sources[1].dataset == "wikimedia/wikipedia"


def test_the_printed_auxiliary_block_loads() -> None:
    preset = decoded(auxiliary=json.loads(MISSION_AUXILIARY))
    assert preset.auxiliary.span_contrastive_temperature == 0.07
    assert preset.auxiliary.heads == ("value", "dynamics", "policy", "span_contrastive")
    assert preset.loss_weights == dict.fromkeys(["value", "dynamics", "dynamics_kl", "dynamics_value", "policy", "span_contrastive"], 0.05)


def test_the_printed_hybrid_loads() -> None:
    preset = decoded(
        model={"hidden_size": 512, "num_layers": 8, "num_heads": 8, "seq_length": 1024},
        s5={"enabled": True, "layers": "even", "state_size": 64},
        longformer={"enabled": True, "layers": "odd", "window": 256, "global_tokens": 4},
        hyena={"enabled": False, "layers": [0, 2, 4], "filter_order": 64},
        moe={"enabled": True, "layers": "every:4", "experts": 8, "experts_per_token": 2},
        retro={"enabled": False, "num_neighbors": 2, "chunk_size": 64},
    )
    assert layer_plan(preset) == (("s5", "swiglu"), ("longformer", "swiglu"), ("s5", "swiglu"), ("longformer", "moe")) * 2


def test_flat_names_are_the_sections_switches() -> None:
    flat = decoded(use_hyena=True, hyena_use_in_layers=[0, 2], hyena_filter_order=32, colt5_conditional_layers="ffn", use_ul2=True, ul2_denoiser_types=["mask"])
    sections = decoded(
        hyena={"enabled": True, "layers": [0, 2], "filter_order": 32}, colt5={"layers": "ffn"}, ul2={"enabled": True, "denoiser_types": ["mask"]}
    )
    assert flat == sections


@pytest.mark.parametrize("path", sorted(Path("configs").glob("[0-9]*.json")), ids=lambda path: path.stem)
def test_shipped_presets_load_and_survive_a_round_trip(path: Path) -> None:
    preset = load_preset(path)
    assert preset.about
    assert preset_from_json(preset.model_dump_json(), "again") == preset


REFUSED = [
    ({"modle": {}}, 'modle: unknown key, did you mean "model"?; allowed: name, about, model'),
    ({"model": {"hiden_size": 3}}, 'model.hiden_size: unknown key, did you mean "hidden_size"?; allowed: hidden_size, num_layers'),
    ({"model": {"hidden_size": "3"}}, 'model.hidden_size: found "3"; allowed: an integer from 2 to 65,536'),
    ({"model": {"hidden_size": 64.5}}, "model.hidden_size: found 64.5; allowed: an integer from 2 to 65,536"),
    ({"model": {"hidden_size": True}}, "model.hidden_size: found true; allowed: an integer"),
    ({"model": {"hidden_size": 0}}, "model.hidden_size: found 0; allowed: an integer from 2"),
    ({"model": {"hidden_size": 250}}, "model: hidden_size 250 can't be divided among 4 heads"),
    ({"model": {"num_heads": 4, "num_kv_heads": 3}}, "model: num_heads 4 can't be divided among 3 key and value heads"),
    ({"model": {"hidden_size": 20}}, 'model: position "rope" turns pairs, but a head is 5 wide'),
    ({"model": 3}, "model: found 3; allowed: an object"),
    ({"model": {"norm_eps": None}}, "model.norm_eps: found null; allowed: a number above 0"),
    ({"data": {}}, "data.sources: missing; allowed: a list"),
    ({"data": {"sources": []}}, "data.sources: found []; allowed: a list of 1 or more"),
    ({"data": {"sources": ["wikipeda"]}}, 'data.sources[0]: found "wikipeda", did you mean "wikipedia"?; allowed: wikipedia, openwebtext'),
    ({"data": {"sources": [7]}}, "data.sources[0]: found 7; allowed: "),
    ({"data": {"sources": [{"path": "x"}]}}, "data.sources[0]: a source needs a type; allowed: hf, files, pdf, wikipedia"),
    ({"data": {"sources": [{"type": "pfd", "path": "x"}]}}, 'data.sources[0].type: found "pfd", did you mean "pdf"?'),
    ({"data": {"sources": ["c4", {"type": "pdf", "pth": "x"}]}}, "data.sources[1].path: missing; allowed: a text"),
    ({"data": {"sources": [{"type": "pdf", "path": "x", "repat": True}]}}, 'data.sources[0].repat: unknown key, did you mean "repeat"?'),
    ({"data": {"sources": ["c4", "c4"]}}, 'data: two sources are called "c4"'),
    ({"data": {"sources": ["c4"], "mix_strategy": "wieghted"}}, 'data.mix_strategy: found "wieghted", did you mean "weighted"?; allowed: round_robin'),
    ({"data": {"sources": ["c4"], "mix_strategy": "weighted"}}, 'data: mix_strategy "weighted" needs source_weights'),
    ({"data": {"sources": ["c4"], "source_weights": {"c5": 1}}}, "data: source_weights names ['c5'], the sources are ['c4']"),
    ({"data": {"sources": ["c4"], "source_weights": {"c4": 1e308}}}, "data.source_weights.c4: found 1e+308"),
    ({"data": {"sources": ["c4"], "cache": {"gigabytes": 1e300}}}, "data.cache"),
    ({"data": {"sources": ["c4"]}, "auxiliary": {"adaptive_interval_tokens": 10**400}}, "auxiliary.adaptive_interval_tokens: found 1"),
    ({"data": {"sources": ["c4"], "source_weights": [1, 2]}}, "data: source_weights has 2 numbers for 1 sources"),
    ({"data": {"sources": [{"type": "hf", "dataset": "a/b", "format": "{a.b}"}]}}, "data.sources[0]: format may hold plain names in braces only"),
    ({"data": {"sources": [{"type": "hf", "dataset": "a/b", "fields": ["q"], "format": "{a}"}]}}, "data.sources[0]: format uses {a}, which is not in fields"),
    ({"hyena": {"enabled": True, "layers": "evn"}}, 'hyena.layers: found "evn", did you mean "even"?; allowed: all, even'),
    ({"hyena": {"enabled": True, "layers": [9]}}, "hyena.layers: layer 9 is not there: the model has layers 0 to 3"),
    ({"train": {"long_context": {"enabled": True}}}, "train.long_context: attention in layer 0 keeps every token of a text without end; let another claim"),
    ({"train": {"long_context": {"enabled": True}}, "s5": {"enabled": True, "layers": "even"}}, "train.long_context: attention in layer 1 keeps"),
    (
        {"train": {"long_context": {"enabled": True, "backprop_chunks": 3, "chunk_length": 100}}, "s5": {"enabled": True}},
        "train.long_context: backprop_chunks 3 times chunk_length 100 is more than model.seq_length 256, and gradients end where a row does",
    ),
    ({"train": {"long_context": {"long_unroll_every": 5, "backprop_chunks": 8}}}, "train.long_context: long_unroll_chunks 8 must be more than"),
    (
        {"train": {"long_context": {"enabled": True}}, "model": {"position": "learned"}, "rwkv": {"enabled": True}},
        "train.long_context: learned positions end at model.seq_length",
    ),
    (
        {"train": {"seq_length_curriculum": [{"until_tokens": 5, "seq_length": 8}, {"until_tokens": 5, "seq_length": 16}]}},
        "train: seq_length_curriculum: each stage must end after the one before",
    ),
    (
        {"train": {"seq_length_curriculum": [{"until_tokens": 5, "seq_length": 8}, {"until_tokens": 9, "seq_length": 257}]}},
        "train.seq_length_curriculum: a stage has rows of 257 tokens, more than model.seq_length 256",
    ),
    (
        {"train": {"batch_curriculum": [{"until_tokens": 9, "rows": 8}, {"until_tokens": 5, "rows": 16}]}},
        "train: batch_curriculum: each stage must end after the one before",
    ),
    ({"train": {"batch_curriculum": [{"until_tokens": 5, "rows": 0}]}}, "train.batch_curriculum[0].rows: found 0; allowed: an integer from 1"),
    ({"train": {"seq_length_curriculum": [{"until_tokens": 5}]}}, "train.seq_length_curriculum[0].seq_length: missing; allowed: an integer from 1"),
    ({"model": {"position_interpolation_layers": [4]}}, "model.position_interpolation_layers: layer 4 is not there"),
    (
        {"train": {"long_context": {"enabled": True}}, "shared_attention": {"enabled": True, "layers": [1, 3]}, "s5": {"enabled": True, "layers": "even"}},
        "train.long_context: shared_attention in layer 1 keeps every token",
    ),
    (
        {"model": {"num_layers": 1}, "shared_attention": {"enabled": True, "layers": "odd"}},
        "shared_attention.layers: 'odd' names none of 1 layers",
    ),
    (
        {"model": {"num_layers": 4}, "mixture_of_depths": {"enabled": True, "layers": "every:9"}},
        "mixture_of_depths.layers: 'every:9' names none of 4 layers",
    ),
    ({"model": {"num_layers": 1}, "s5": {"enabled": True, "layers": "odd"}}, "s5.layers: 'odd' names none of 1 layers"),
    (
        {"model": {"position_interpolation": 2.0, "position_interpolation_layers": "odd"}, "shared_attention": {"enabled": True}},
        "model.position_interpolation_layers: the layers of shared_attention share their keys; name all of them or none",
    ),
    ({"head_gating": {"enabled": True, "layers": [7]}}, "head_gating.layers: layer 7 is not there: the model has layers 0 to 3"),
    (
        {"head_gating": {"enabled": True, "ffn_groups": 5}},
        "head_gating: the 704 channels of swiglu in layer 0 can't be divided into 5 groups (head_gating.ffn_groups)",
    ),
    (
        {"head_gating": {"enabled": True, "layers": [1, 2]}, "shared_ffn": {"enabled": True, "private_share": 0.0}},
        "head_gating: all of the feed-forward in layer 1 is shared; set head_gating.ffn_groups to 0",
    ),
    ({"model": {"value_residual": True}, "s5": {"enabled": True}}, "model.value_residual: 0 of the layers' mixers is attention or longformer; two or more"),
    (
        {"model": {"value_residual": True}, "mixture_of_depths": {"enabled": True, "layers": [2]}},
        "model.value_residual: attention in layer 2 needs the values of every token; leave the layer out of mixture_of_depths.layers",
    ),
    (
        {"model": {"value_residual": True, "bidirectional": "own"}, "train": {"objective": "mlm"}},
        "model.value_residual: a text that is read from both ends has other values each way; set model.bidirectional",
    ),
    ({"shared_ffn": {"enabled": True, "layers": [2]}}, "shared_ffn: 1 of the layers it names has a feed-forward that no mechanism claims; two or more"),
    ({"shared_ffn": {"enabled": True}, "rwkv_channel": {"enabled": True}}, "shared_ffn: 0 of the layers it names has"),
    ({"shared_ffn": {"enabled": True, "private_share": 0.95}, "model": {"ffn_size": 3}}, "shared_ffn: of 3 channels private_share 0.95 leaves none"),
    ({"shared_ffn": {"enabled": True, "private_share": 1}}, "shared_ffn.private_share: found 1; allowed: a number from 0"),
    ({"hyena": {"layers": "all", "use_in_layers": "all"}}, "hyena.use_in_layers: is the older name of layers"),
    (
        {"retro": {"enabled": True, "encoder_size": 100}},
        "retro: encoder_size 100 can't be divided into heads of 64 (model.hidden_size / model.num_heads)",
    ),
    ({"model": {"num_layers": 1}, "retro": {"enabled": True}}, "retro.layers: 'every:2' names none of 1 layers"),
    (
        {"retro": {"enabled": True}, "mixture_of_depths": {"enabled": True, "layers": "odd"}},
        "mixture_of_depths: layer 1 holds retro, which needs every token; leave the layer out of mixture_of_depths.layers",
    ),
    ({"retro": {"retriever_type": "external_api"}}, 'retro: retriever_type "external_api" is refused: no outside service'),
    ({"retro": {"chunk_size": 100_000}}, "retro.chunk_size: found 100000; allowed: an integer from 2 to 65,536"),
    (
        {"retro": {"enabled": True}, "s5": {"enabled": True}, "train": {"long_context": {"enabled": True, "context_length": 64, "chunk_length": 32}}},
        "retro: nothing follows a chunk of 64 tokens (chunk_size) within a context of 64; make chunks shorter",
    ),
    ({"moe": {"experts": 2, "experts_per_token": 3}}, "moe: experts_per_token 3 is more than the 2 experts"),
    ({"moe": {"experts_per_token": 1, "normalise": True}}, "moe: normalise makes the weight of a token's only expert 1"),
    ({"train": {"warmup_share": 0.9, "decay_share": 0.2}}, "train: warmup_share 0.9 and decay_share 0.2 are more than the whole run"),
    ({"train": {"precision": "bf16"}}, 'train.precision: found "bf16", did you mean "bfloat16"?; allowed: auto, float32, bfloat16'),
]


@pytest.mark.parametrize(("sections", "line"), REFUSED, ids=[line[:50] for _, line in REFUSED])
def test_errors_are_one_line_with_place_and_remedy(sections: dict[str, Any], line: str) -> None:
    assert refusal(**sections).startswith(line)


FILES = {
    "broken.json": (b'{"model": {"hidden_size": 3,}}', "line 1, column 2"),
    "empty.json": (b"", "line 1, column 1: not JSON"),
    "list.json": (b"[]", "found [], allowed: an object"),
    "twice.json": (b'{"model": {}, "model": {}}', '"model" stands twice'),
    "nan.json": (b'{"train": {"learning_rate": NaN}}', "NaN is not a number that JSON knows"),
    "latin.json": (b'{"name": "caf\xe9"}', "is not UTF-8 text (byte 13)"),
    "deep.json": (b"[" * 100_000, "nested too deep"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_that_are_no_presets(tmp_path: Path, name: str) -> None:
    content, reason = FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PresetError) as caught:
        load_preset(tmp_path / name)
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(PresetError, match="can't be read: No such file"):
        load_preset(tmp_path / "none.json")


def test_the_name_is_the_files_own_when_none_is_given(tmp_path: Path) -> None:
    (tmp_path / "mine.json").write_text('\ufeff{"data": {"sources": ["c4"]}}', encoding="utf-8")
    assert load_preset(tmp_path / "mine.json").name == "mine"


def test_train_tokens_is_overridden_and_said() -> None:
    assert decoded().notices == []
    assert decoded(name="p", train={"train_tokens": 7}).notices == ["p: train_tokens 7 is overridden: every run reads 100,000,000 tokens"]


WORDS = [
    ((("a", "f"),) * 4, "4 x (a, f)"),
    ((("a", "f"), ("b", "f")) * 3, "3 x (a, f | b, f)"),
    ((("a",), ("a",), ("b",)), "2 x (a), then 1 x (b)"),
    ((("a",), ("b",), ("a",), ("b",), ("a",)), "2 x (a | b), then 1 x (a)"),
]


@pytest.mark.parametrize(("plan", "words"), WORDS, ids=[words for _, words in WORDS])
def test_plans_in_words(plan: tuple[tuple[str, ...], ...], words: str) -> None:
    assert plan_in_words(plan) == words


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, ""),
        ({"head_gating": {"enabled": True}}, "; gates on each head and 4 groups of each feed-forward"),
        ({"head_gating": {"enabled": True, "ffn_groups": 0, "layers": "odd"}}, "; gates on each head in layers 1, 3"),
        ({"head_gating": {"enabled": True, "mixers": False, "ffn_groups": 0}}, ""),
        ({"shared_ffn": {"enabled": True}}, "; 616 of 704 feed-forward channels shared"),
        ({"model": {"value_residual": True}}, "; values of layer 0 mixed into those of 3 others"),
        (
            {"shared_ffn": {"enabled": True, "layers": [0, 2]}, "head_gating": {"enabled": True, "mixers": False, "ffn_groups": 2}},
            "; gates on 2 groups of each feed-forward; 616 of 704 feed-forward channels shared in layers 0, 2",
        ),
    ],
    ids=str,
)
def test_options_in_words(sections: dict[str, Any], words: str) -> None:
    assert model_in_words(decoded(**sections)) == "4 x (attention, swiglu)" + words


def test_one_layer_makes_the_keys_of_all() -> None:
    preset = decoded(model={"num_layers": 6}, shared_attention={"enabled": True, "layers": [4, 1, 5]})
    assert [at_layer(preset, layer).shared_attention.owns for layer in range(6)] == [True, True, False, False, False, False]
    assert preset.shared_attention.owns and "owns" not in preset.model_dump_json()


def test_neighbours_are_attended_to_beside_what_stands_in_a_layer() -> None:
    sections = {"model": {"num_layers": 5}, "s5": {"enabled": True, "layers": [1]}, "longformer": {"enabled": True, "layers": [1, 2]}}
    sections["moe"] = {"enabled": True, "layers": [3]}
    without = layer_plan(decoded(**sections))
    assert layer_plan(decoded(retro={"enabled": True}, **sections)) == (
        without[0],
        ("longformer", "s5", "retro", "swiglu"),
        without[2],
        ("attention", "retro", "moe"),
        without[4],
    )
    assert layer_plan(decoded(retro={"enabled": True, "add_cross_attention": False}, **sections)) == without
    alone = {"model": {"num_layers": 1}, "retro": {"enabled": True, "add_cross_attention": False}}
    assert layer_plan(decoded(**alone)) == (("attention", "swiglu"),)
    shared = {"retro": {"enabled": True, "layers": [0]}, "shared_ffn": {"enabled": True}, "head_gating": {"enabled": True, "layers": [0]}}
    assert [options.gates for options in layer_options(decoded(**shared))][:2] == [(4, 4, 4), (0, 0)]


CLAIMS = {"all": [0, 1, 2, 3, 4], "even": [0, 2, 4], "odd": [1, 3], "first_half": [0, 1, 2], "last_half": [3, 4], "every:2": [1, 3], "ffn": [0, 1, 2, 3, 4]}


@pytest.mark.parametrize("word", CLAIMS)
def test_layer_words(word: str) -> None:
    plan = layer_plan(decoded(model={"num_layers": 5}, s5={"enabled": True, "layers": word}))
    assert [i for i, units in enumerate(plan) if "s5" in units] == CLAIMS[word]


def test_interpolation_in_some_layers() -> None:
    preset = decoded(model={"position_interpolation": 4.0, "position_interpolation_layers": "odd"})
    assert [at_layer(preset, layer).model.position_interpolation for layer in range(4)] == [1.0, 4.0, 1.0, 4.0]
    assert at_layer(preset, 0).model.hidden_size == preset.model.hidden_size
    everywhere = decoded(model={"position_interpolation": 4.0})
    assert all(at_layer(everywhere, layer) == everywhere for layer in range(4))


def test_now_and_then_gradients_flow_back_further() -> None:
    config = decoded(train={"long_context": {"long_unroll_every": 3, "long_unroll_chunks": 9, "backprop_chunks": 2}}).train.long_context
    assert [config.chunks_of(step) for step in range(7)] == [2, 2, 9, 2, 2, 9, 2]
    assert {decoded().train.long_context.chunks_of(step) for step in range(50)} == {1}
