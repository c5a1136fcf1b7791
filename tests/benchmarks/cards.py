"""The card of every unit and switch: what it changes against the model of attention alone, at equal tokens: python -m tests.benchmarks.cards

    bits        held-out bits per byte, more or less than that model's with the same seed, after the same batches
    speed       its tokens a second over that model's: both take the same batches once it is trained, in turns at going first, and the median counts.
                Of steps that grow that is the speed once they have; along the run see ablations
    memory      what model, optimizer and steps take over what that model's take, at the highest; each in a process of its own

All are 64 wide and of 4 layers, with SwiGLU, learn with Muon as 00_best_general does, in float32 on any machine, and have first weights in common
wherever name and shape agree. Where an arm is `sized`, its feed-forward is as wide as makes a token use as many parameters. Nothing is tuned for any
arm. What changes the text that is read (objectives, masks, long_context, lengths of rows, retro, whose memory fills as it is read) has measurements
of its own: objectives, long_context, context_extension, ablations, retro_quality.

CARDS_TOKENS   1,000,000    CARDS_ARMS   names of ARMS, ";" between; all without    CARDS_RESULTS   cards.jsonl, where each run is kept: what was cut
CARDS_SEEDS    "0 1"        CARDS_FILE   docs/cards.json, to which all arms that have every seed are written at the end      off goes on
CARDS_TRAIN    what else stands in the section train, for all arms: '{"optimizer": "adamw", "learning_rate": 0.002}' says how they learn with AdamW

Seeds may be measured beside each other, by two commands with one seed each and the same CARDS_RESULTS; a third with both then finds all done.
Text: the mix of the default preset from the Hub that HF_ENDPOINT leads to, else installed documentation.
"""

import json
import os
import statistics
import sys
from collections.abc import Callable, Iterator
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch

from data_sources import Batch
from data_sources.tokenizer import build_tokenizer, token_bytes
from lm.preset import Preset, count_parameters, load_preset
from lm.preset.auxiliary import HEAD_NAMES
from lm.preset.compare import in_force
from lm.training.step import Teacher
from lm.training.trial import random_batch
from tests.benchmarks.measures import Results, apart, bits_per_byte, digest, paces, peak_bytes, ratio
from tests.benchmarks.teaching import BUDGET_WITHOUT_END, batches_of, held_out, in_use, next_token, on_what, teacher_of
from tests.benchmarks.text import chosen_data

TOKENS = int(os.environ.get("CARDS_TOKENS", 1_000_000))
SEEDS = tuple(map(int, os.environ.get("CARDS_SEEDS", "0 1").split()))
RESULTS = Path(os.environ.get("CARDS_RESULTS", "cards.jsonl"))
FILE = Path(os.environ.get("CARDS_FILE", "docs/cards.json"))
MODEL = {"hidden_size": 64, "num_layers": 4, "num_heads": 4, "seq_length": 256, "ffn_size": 176}
TRAIN = {"per_gpu_batch_size": 8, "optimizer": "muon", "learning_rate": 4e-3, "warmup_share": 0.05, "precision": "float32"} | json.loads(
    os.environ.get("CARDS_TRAIN", "{}")
)
VOCABULARY, HELD_OUT_ROWS, PAIRS, WIDTHS = 2048, 128, 20, range(8, 1024, 4)


class Arm(NamedTuple):
    """A switch, as its JSON path, the value that it is given, and what else is said with it."""

    switch: str
    value: Any = True
    beside: dict[str, Any] = {}  # by JSON path
    note: str = ""  # of `beside`, in words
    sized: bool = True  # whether the feed-forward makes up for parameters

    @property
    def name(self) -> str:
        return self.switch + (f" {json.dumps(self.value)}" if self.value is not True else "") + (f", {self.note}" if self.note else "")


ATTENTION = Arm("attention", note="alone")
WINDOW = {"longformer.window": 64}
ARMS = (
    Arm("longformer.enabled", beside=WINDOW | {"longformer.global_tokens": 4}, note="window 64"),
    Arm("s5.enabled"),
    Arm("s5.enabled", beside={"s5.layers": "even", "longformer.enabled": True, "longformer.layers": "odd"} | WINDOW, note="longformer in turn"),
    Arm("hyena.enabled"),
    Arm("hyena.enabled", beside={"hyena.layers": [0, 1, 2]}, note="but every 4th layer"),
    Arm("rwkv.enabled", beside={"rwkv_channel.enabled": True}, note="with rwkv_channel"),
    Arm("rwkv_channel.enabled"),
    Arm("mamba2.enabled"),
    Arm("mamba2.enabled", beside={"mamba2.layers": "even", "longformer.enabled": True, "longformer.layers": "odd"} | WINDOW, note="longformer in turn"),
    Arm("gla.enabled"),
    Arm("deltanet.enabled"),
    Arm("deltanet.enabled", beside={"deltanet.layers": [0, 1, 2]}, note="but every 4th layer"),
    Arm("deltanet.gated", False, {"deltanet.enabled": True}),
    Arm("shared_attention.enabled", beside={"shared_attention.layers": "last_half", "gla.enabled": True, "gla.layers": "first_half"}, note="gla before"),
    Arm("moe.enabled"),
    Arm("moe.layers", "odd", {"moe.enabled": True}),
    Arm("colt5.enabled", sized=False),
    Arm("colt5.budget", 0.1, {"colt5.enabled": True}, sized=False),
    Arm("colt5.budget", 0.5, {"colt5.enabled": True}, sized=False),
    Arm("colt5_attention.enabled", sized=False),
    Arm("mixture_of_depths.enabled", beside={"mixture_of_depths.layers": "odd"}, note="odd layers", sized=False),
    Arm("mixture_of_depths.share", 0.125, {"mixture_of_depths.enabled": True, "mixture_of_depths.layers": "odd"}, "odd layers", sized=False),
    Arm(
        "mixture_of_depths.select",
        "previous_ffn",
        {"mixture_of_depths.enabled": True, "mixture_of_depths.layers": "odd", "longformer.enabled": True, "longformer.layers": "odd"} | WINDOW,
        "longformer there",
        sized=False,
    ),
    Arm("head_gating.enabled"),
    Arm("head_gating.ffn_groups", 0, {"head_gating.enabled": True}),
    Arm("shared_ffn.enabled", sized=False),
    Arm("shared_ffn.enabled", note="wider for it"),
    Arm("shared_ffn.private_share", 0.0, {"shared_ffn.enabled": True}, sized=False),
    Arm("model.qk_norm", False, sized=False),
    Arm("model.tie_embeddings", False, sized=False),
    Arm("model.num_kv_heads", 2, sized=False),
    Arm("model.num_kv_heads", 1, sized=False),
    Arm("model.position", "learned", sized=False),
    Arm("model.activation", "relu2"),
    Arm("model.value_residual", sized=False),
    Arm("model.logit_soft_cap", 15.0, sized=False),
    Arm("train.optimizer", "adamw", sized=False),
    Arm("train.weight_decay", 0.0, sized=False),
    Arm("train.decay_share", 0.0, sized=False),
    Arm("train.average_tokens", TOKENS // 20, sized=False),
    Arm("train.batch_curriculum", [{"until_tokens": TOKENS // 10, "rows": 2}, {"until_tokens": 3 * TOKENS // 10, "rows": 4}], sized=False),
    Arm("train.compile", "on", sized=False),  # for its speed
    *(Arm(f"auxiliary.enable_{head}", sized=False) for head in HEAD_NAMES),
)

# Switches of two or more values without a card, and why.
OTHER_TEXT = "it changes what is read or learned of it: tests.benchmarks.objectives"
OTHER_STATES = "states between rows: tests.benchmarks.long_context and passkey"
OTHER_MEMORY = "a memory that fills as it is read: tests.benchmarks.retro_quality and memory_recall"
OTHER_WAY = "another way of a mechanism that has a card as it comes; not measured"
NO_LEARNING = "it changes nothing that is learned"
WITHOUT_CARD = {
    "model.bidirectional": OTHER_TEXT,
    "train.tensorboard": NO_LEARNING,
    "train.long_context.enabled": OTHER_STATES,
    "train.objective": OTHER_TEXT,
    "train.precision": "what it brings hangs on the device: tests.benchmarks.precision",
    "auxiliary.stop_gradients": "what heads bring with and without it: tests.benchmarks.heads",
    "auxiliary.span_l2_normalize": OTHER_WAY,
    "auxiliary.enable_adaptive_sources": "it changes which sources are read: tests.benchmarks.mix_shares",
    "deltanet.output_gate": OTHER_WAY,
    "retro.enabled": OTHER_MEMORY,
    "retro.retriever_type": OTHER_MEMORY,
    "retro.add_cross_attention": OTHER_MEMORY,
    "moe.normalise": OTHER_WAY,
    "colt5_attention.routing_strategy": OTHER_WAY,
    "colt5_attention.router_type": OTHER_WAY,
    "colt5.routing_strategy": OTHER_WAY,
    "colt5.router_type": OTHER_WAY,
    "mixture_of_depths.routing_strategy": OTHER_WAY,
    "mixture_of_depths.router_type": OTHER_WAY,
    "head_gating.mixers": OTHER_WAY,
    "ul2.enabled": OTHER_TEXT,
    "ul2.denoiser_types": OTHER_TEXT,
}


def preset_of(arm: Arm, seed: int = 0) -> Preset:
    """The small model with the arm's switches."""
    default = load_preset("configs/00_best_general.json")
    data = chosen_data(default).model_copy(update={"vocab_size": VOCABULARY})
    raw: dict[str, Any] = {"model": dict(MODEL), "train": TRAIN | {"seed": seed}, "data": data.model_dump(mode="json")}
    for path, value in ({} if arm == ATTENTION else {**arm.beside, arm.switch: arm.value}).items():
        *sections, switch = path.split(".")
        reduce(lambda inside, name: inside.setdefault(name, {}), sections, raw)[switch] = value
    preset = Preset.model_validate(raw)
    if not arm.sized or arm == ATTENTION:
        return preset
    wanted = count_parameters(preset_of(ATTENTION), VOCABULARY).active
    each = (preset.model_copy(update={"model": preset.model.model_copy(update={"ffn_size": width})}) for width in WIDTHS)
    return min(each, key=lambda preset: abs(count_parameters(preset, VOCABULARY).active - wanted))


# What is measured.


class Bench:
    """The text, and what was found on it."""

    def __init__(self) -> None:
        self.results, preset = Results(RESULTS), preset_of(ATTENTION)
        self.tokenizer = build_tokenizer(preset.data, seed=0)
        self.sizes, self.held = torch.tensor(token_bytes(self.tokenizer)), held_out(preset, self.tokenizer, HELD_OUT_ROWS)

    def run(self, arm: Arm, seed: int) -> dict[str, Any]:
        """Bits per byte after the tokens, and the speed against attention alone."""
        return self.results.of(self._asked(arm, seed), lambda: self._taught(arm, preset_of(arm, seed)))

    def memory(self, arm: Arm) -> int:
        """Bytes at the highest that three steps take over what the process held before."""
        asked = {"what": "memory", "arm": arm.name, "preset": digest(in_force(preset_of(arm)))}
        return self.results.of(asked, lambda: apart("tests.benchmarks.cards", arm.name))

    def is_done(self, arm: Arm) -> bool:
        """Whether every seed was measured."""
        return all(self.results.known(self._asked(arm, seed)) for seed in SEEDS)

    @staticmethod
    def _asked(arm: Arm, seed: int) -> dict[str, Any]:
        preset = preset_of(arm, seed)
        return {"what": "run", "arm": arm.name, "seed": seed, "tokens": TOKENS, **on_what(preset), "preset": digest(in_force(preset))}

    def _taught(self, arm: Arm, preset: Preset) -> dict[str, Any]:
        plain, like = teacher_of(preset_of(ATTENTION, preset.train.seed), len(self.tokenizer))
        teacher, learner = teacher_of(preset, len(self.tokenizer), like, self.tokenizer.pad_token_id)
        sources, read, number, batches = len(preset.data.sources), 0, 0, batches_of(preset, self.tokenizer)
        while read < TOKENS:
            read += teacher.step(next(batches), sources, read, TOKENS, number).tokens
            number += 1
        with in_use(teacher):
            bits, _ = bits_per_byte(lambda batch: next_token(learner, batch), learner, self.held, self.sizes)
        further, warm = list(islice(batches, 2 + PAIRS)), 2

        def taker(one: Teacher) -> Callable[[int], int]:
            return lambda at: one.step(further[at], sources, 0, BUDGET_WITHOUT_END, number + at).tokens

        pace = ratio(paces({"plain": taker(plain), "arm": taker(teacher)}, PAIRS, warm), "arm", "plain")
        found = {"bits": bits, "speed": pace.median, "speed_from": pace.low, "speed_to": pace.high}
        print(f"{arm.name}, seed {preset.train.seed}: {bits:.4f} bits per byte, times as fast: {pace}", flush=True)
        return found


def three_steps(name: str) -> int:
    """Bytes that they take beyond what the program itself does."""
    preset = preset_of(next(arm for arm in (ATTENTION, *ARMS) if arm.name == name))
    batch: Batch = random_batch(preset.step_rows, preset.model.seq_length, VOCABULARY)
    before = peak_bytes()
    teacher, _ = teacher_of(preset, VOCABULARY)
    for number in range(3):
        teacher.step(batch, len(preset.data.sources), 0, BUDGET_WITHOUT_END, number)
    return peak_bytes() - before


# What is told.


def card(bench: Bench, arm: Arm) -> dict[str, Any]:
    """What lm.app.cards reads."""
    against = [bench.run(arm, seed)["bits"] - bench.run(ATTENTION, seed)["bits"] for seed in SEEDS]
    parameters, plain = (count_parameters(preset_of(each), VOCABULARY).total for each in (arm, ATTENTION))
    return {
        "switch": arm.switch,
        "value": arm.value,
        "note": arm.note,
        "bits": round(statistics.mean(against), 4),
        "bits_from": round(min(against), 4),
        "bits_to": round(max(against), 4),
        "speed": round(statistics.median(bench.run(arm, seed)["speed"] for seed in SEEDS), 3),
        "memory": round(bench.memory(arm) / bench.memory(ATTENTION), 3),
        "parameters": round(parameters / plain, 3),
        "hidden_size": MODEL["hidden_size"],
        "tokens": TOKENS,
        "seeds": len(SEEDS),
    }


def arm_of(card: dict[str, Any]) -> Arm:
    """What a card tells of, by name."""
    return Arm(card["switch"], card["value"], note=card["note"])


def shown(earlier: list[dict[str, Any]], cards: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """`cards`, and of those there were before what was not measured now; in the order of ARMS."""
    by_name = {arm_of(each).name: each for each in (*earlier, *cards)}
    for arm in ARMS:
        if arm.name in by_name and not isinstance(arm.value, list):  # beside a switch there is room for one value
            yield by_name[arm.name]


def table(bench: Bench, cards: list[dict[str, Any]]) -> Iterator[str]:
    """For the README."""
    bits = [bench.run(ATTENTION, seed)["bits"] for seed in SEEDS]
    yield f"attention alone: {statistics.mean(bits):.4f} bits per byte ({min(bits):.4f} to {max(bits):.4f}), {bench.memory(ATTENTION) / 2**20:.0f} MiB"
    columns = "change in bits per byte, mean and each end | times as fast | times the memory | times the parameters"
    yield f"\n| {MODEL['hidden_size']} wide, {TOKENS:,} tokens, {len(SEEDS)} seeds | {columns} |"
    yield "|---|---|---|---|---|"
    for each in cards:
        name = arm_of(each).name
        spread = f"{each['bits']:+z.4f} ({each['bits_from']:+z.4f} to {each['bits_to']:+z.4f})"
        yield f"| `{each['switch']}`{name.removeprefix(each['switch'])} | {spread} | {each['speed']:.2f} | {each['memory']:.2f} | {each['parameters']:.2f} |"


def main() -> None:
    if sys.argv[1:]:  # in a process of its own
        print(three_steps(sys.argv[1]))
        return
    named = os.environ["CARDS_ARMS"].split(";") if "CARDS_ARMS" in os.environ else [arm.name for arm in ARMS]
    if unknown := set(named) - {arm.name for arm in ARMS}:
        raise SystemExit(f"no such arms: {sorted(unknown)}; there are {'; '.join(arm.name for arm in ARMS)}")
    bench = Bench()
    for seed in SEEDS:
        for arm in (ATTENTION, *(arm for arm in ARMS if arm.name in named)):
            bench.run(arm, seed)
    cards = [card(bench, arm) for arm in ARMS if bench.is_done(arm)]
    earlier = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else []
    FILE.write_text("[\n" + ",\n".join(map(json.dumps, shown(earlier, cards))) + "\n]\n", encoding="utf-8")
    print("\n".join([*table(bench, cards), *bench.results.commits_told()]))


if __name__ == "__main__":
    main()
