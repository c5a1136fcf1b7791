"""What a step will need is counted before it, fewer rows are read where it is too much, and the time of a run is foretold."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from lm.auxiliary.heads import build_heads
from lm.model import build_model
from lm.preset import Preset, load_preset
from lm.preset.counting import count_parameters, operations_per_token
from lm.preset.holding import held_bytes
from lm.training import Halted, forecast, host, train
from lm.training.distribution import Ranks, device_in_words
from lm.training.forecast import PROBE, Need, copy_bytes, duration_told, in_hours, kept_bytes, lasting_bytes, memory_of, peak_by_name, peak_products, too_large
from lm.training.learner import Learner
from lm.training.optimizer import build_optimizer
from lm.training.paces import Pace, keep_pace, kept_pace
from lm.training.saving import copied
from lm.training.snapshots import Snapshots
from lm.training.step import Teacher
from tests.training.ranks import rows
from tests.training.test_run import STEP, Recorder, Tiny, trained

GB = 10**9


def test_what_autograd_keeps_is_counted_once_and_parameters_are_not() -> None:
    """silu keeps its input, each product its input and its weight; a view of what is kept already is kept for nothing."""
    first, second = nn.Linear(8, 16, bias=False), nn.Linear(16, 4, bias=False)
    x = torch.randn(32, 8, requires_grad=True)
    weights = [first.weight, second.weight]
    inner = torch.tensor([32 * 8, 32 * 16, 32 * 16]).sum().item() * 4  # x, what silu is given, what it gives
    assert kept_bytes(lambda: second(nn.functional.silu(first(x))), weights) == inner
    assert kept_bytes(lambda: second(nn.functional.silu(first(x)).view(2, 16, 16)).flatten(), weights) == inner
    assert kept_bytes(lambda: second(nn.functional.silu(first(x))), []) == inner + sum(weight.nbytes for weight in weights)


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_gradients_and_moments_are_counted_until_they_are_there(optimizer: str, tiny: Tiny) -> None:
    """Bytes of what the optimizer then holds."""
    preset = tiny(train={"optimizer": optimizer})
    learner = Learner(build_model(preset, 50))
    teacher = Teacher(Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, {})
    size = sum(parameter.nbytes for parameter in learner.parameters())
    before = lasting_bytes(learner, teacher.optimizer.missing)
    teacher.step(rows(), 1, 0, 10**6)
    moments = sum(value.nbytes for parameter in learner.parameters() for value in teacher.optimizer.moments(parameter).values() if value.ndim)
    assert before == size + moments and (moments < 2 * size) == (optimizer == "muon")
    assert lasting_bytes(learner, teacher.optimizer.missing) == size, "gradients are let go after a step"


@pytest.mark.parametrize(("free", "fitting"), [(100 * GB, 8), (12 * GB, 8), (7 * GB, 4), (2 * GB, 1), (0, 1)])
def test_as_many_rows_as_fit(free: int, fitting: int) -> None:
    need = Need(lasting=2 * GB, row=GB, free=free, total=16 * GB)
    assert need.rows(8) == fitting and not need.is_hopeless
    assert Need(2 * GB, 15 * GB, free, 16 * GB).is_hopeless


def test_a_step_takes_about_what_was_counted() -> None:
    """Bytes that torch's allocator handed out at the height of a step, over those held before: no more than was counted, and no less than a third."""
    preset = Preset.model_validate(
        {"model": {"hidden_size": 128, "num_layers": 4, "num_heads": 4, "seq_length": 256}, "train": {"per_gpu_batch_size": 8}, "data": {"sources": ["c4"]}}
    )
    learner = Learner(build_model(preset, 50))
    teacher = Teacher(Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, {})
    batch = rows()
    need = teacher.fit_memory(batch)
    teacher.step(batch, 1, 0, 10**6)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        teacher.step(batch, 1, 0, 10**6)
    assert profile.profiler is not None
    held = highest = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            highest = max(highest, held)
    gradients = sum(parameter.nbytes for parameter in learner.parameters())
    assert 0.3 < (highest - gradients) / (8 * need.row) < 1, (highest, gradients, need)


@pytest.mark.parametrize(("unit", "most"), [("model", 1.03), ("moe", 1.03), ("hyena", 1.6)])
def test_copies_of_weights_by_autocast_are_counted_once(unit: str, most: float) -> None:
    """In bfloat16, what is counted for two rows of two probes is what autograd keeps of them, at the least 0.97 of it. Hyena keeps much of a row however
    short it is, which is no copy: that is counted for each row, and with its length, too much rather than too little."""
    shape = {"hidden_size": 256, "num_layers": 1, "num_heads": 4, "seq_length": 2 * PROBE}
    sections = {unit: {"enabled": True}} | {"model": shape}
    preset = Preset.model_validate({"train": {"precision": "bfloat16"}, "data": {"sources": ["c4"]}} | sections)
    learner = Learner(build_model(preset, 50))
    teacher = Teacher(Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, {})
    batch = rows(length=2 * PROBE).split(2)[0]
    counted = (teacher.fit_memory(batch).of(2) - teacher._lasting()) / forecast.slack(teacher.ranks.device)
    assert 0.97 < counted / kept_bytes(lambda: teacher.learner([batch]), learner.parameters()) < most


@pytest.mark.parametrize(("heads", "length"), [(4, 512), (16, 512), (16, 256), (4, 1024)])
def test_what_attention_keeps_of_whole_texts_is_counted(heads: int, length: int) -> None:
    """In bfloat16 on processors it keeps the square of short texts, and never more of a longer one than is counted; whatever texts came first."""
    shape = {"hidden_size": 256, "num_layers": 2, "num_heads": heads, "seq_length": length}
    preset = Preset.model_validate({"model": shape, "train": {"precision": "bfloat16"}, "data": {"sources": ["c4"]}})
    learner = Learner(build_model(preset, 50))
    teacher = Teacher(Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, {})
    batch = rows(length=length).split(4)[0]
    counted = (teacher.fit_memory(batch).of(4) - teacher._lasting()) / forecast.slack(teacher.ranks.device)
    kept = kept_bytes(lambda: teacher.learner([batch.undivided()]), learner.parameters())
    assert 0.97 < counted / kept < (1.2 if length <= 512 else 1.6)


def test_a_row_of_one_token_is_counted() -> None:
    preset = Preset.model_validate(
        {"model": {"hidden_size": 32, "num_layers": 1, "num_heads": 2}, "train": {"precision": "bfloat16"}, "data": {"sources": ["c4"]}}
    )
    learner = Learner(build_model(preset, 50))
    teacher = Teacher(Ranks(preset.train), learner, build_optimizer(learner, preset.train), preset.train, {})
    needs = [teacher.fit_memory(rows(length=length)) for length in (1, 2, 3)]
    assert 0 < needs[0].of(1) <= needs[1].of(1) <= needs[2].of(1)


def test_little_memory_makes_fewer_rows_and_the_same_model(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plenty = trained(tiny(), tmp_path / "plenty", 3)
    told = plenty.of("forecast")[0]
    assert told["rows"] == 4 and not told["tight"]
    row = told["needs_bytes"] // 100  # there is room for what lasts, and a little
    monkeypatch.setattr("lm.training.step.memory_of", lambda device: (row, 10**12))
    little = trained(tiny(), tmp_path / "little", 3)
    told = little.of("forecast")[0]
    assert told["rows"] == 1 and told["tight"] and "1 rows are read at a time, not 4" not in told["text"] and "one row is read at a time, not 4" in told["text"]
    for ours, theirs in zip(plenty.of("step"), little.of("step"), strict=True):
        assert ours["batch_hash"] == theirs["batch_hash"] and ours["loss"] == pytest.approx(theirs["loss"], rel=1e-5)


def test_rows_that_become_longer_are_fitted_again(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is memory for one row of 64 tokens at a time, whether shorter ones come before it or not."""
    needs, read, fit, gradients = [], [], Teacher.fit_memory, Teacher._gradients
    monkeypatch.setattr(Teacher, "_lasting", lambda teacher: 0)  # moments that are there by then would make room
    monkeypatch.setattr(Teacher, "fit_memory", lambda teacher, batch: needs.append(fit(teacher, batch)) or needs[-1])
    trained(tiny(), tmp_path / "plenty", 1)
    monkeypatch.setattr(Teacher, "_gradients", lambda *given: read.append((given[1].tokens.shape[1], given[0].micro_rows)) or gradients(*given))
    monkeypatch.setattr("lm.training.step.memory_of", lambda device: (int(1.5 * needs[0].row / forecast.ROOM), 10**12))
    trained(tiny(), tmp_path / "plain", 1)
    assert read == [(64, 1)]
    ramp = {"seq_length_curriculum": [{"until_tokens": STEP // 2, "seq_length": 16}, {"until_tokens": 2 * STEP, "seq_length": 64}]}
    told = [event for event in trained(tiny(train=ramp), tmp_path / "ramp", 2).of("forecast") if "rows" in event]
    assert read[1:] == [(16, 4), (16, 4), (64, 1), (64, 1)]
    assert [event["rows"] for event in told] == [4, 1]
    assert "a step with rows of 64 tokens needs" in told[-1]["text"] and "one row is read at a time, not 4" in told[-1]["text"]


def test_what_can_never_fit_is_said_before_anything_is_learned(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm.training.step.memory_of", lambda device: (10**5, 10**5))
    with pytest.raises(Halted, match=r"a step with a single row needs 0\.\d GB, and there are 0\.0 GB in all: lower model\.seq_length or model\.hidden_size"):
        trained(tiny(), tmp_path, 3)
    assert Snapshots(tmp_path).newest() is None


def test_a_model_larger_than_all_memory_is_refused_before_anything_is_done(tiny: Tiny, tmp_path: Path) -> None:
    """A matrix of a model like this alone would have the process killed, and its tokenizer is not trained for nothing."""
    recorder, huge = Recorder(), tiny(model={"hidden_size": 65536, "num_layers": 512, "num_heads": 64, "seq_length": 64})
    with pytest.raises(Halted, match=r"tiny: [\d,]+ parameters need [\d,]+ GB with what training and saving keep beside them, and this machine has .* GB"):
        train(huge, tmp_path, 3 * STEP, observers=(recorder,))
    assert not any("tokenizer" in event["text"] for event in recorder.of("phase"))


def test_a_model_that_fits_the_machine_but_not_beside_other_programs(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*model: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("lm.training.setup.build_model", full)
    with pytest.raises(Halted, match="does not fit into the memory that is free now: close other programs"):
        trained(tiny(), tmp_path, 1)


def test_the_copy_that_a_snapshot_is_written_from_must_fit_too(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a host it comes beside training; beside a device, host memory holds it alone. Closed forms are what is really copied."""
    copies = []
    monkeypatch.setattr("lm.training.saving.copied", lambda snapshot: copies.append(copied(snapshot)) or copies[-1])
    preset = tiny(train={"average_tokens": 1000}, auxiliary={"enable_policy": True})
    trained(preset, tmp_path, 1)
    vocab_size = len(copies[0].weights["model.embedding.weight"])
    numbers = sum(tensor.numel() for tensor in copies[0].average.values())
    moments = sum(tensor.nbytes for name, tensor in copies[0].optimizer.items() if "exp_avg" in name)
    held, host, device = held_bytes(preset, vocab_size), torch.device("cpu"), torch.device("cuda:0")
    assert held.copy == moments + 2 * 4 * numbers and held.training == held.copy + 4 * numbers
    learner = Learner(build_model(preset, vocab_size), build_heads(preset, 0))
    wanted = build_optimizer(learner, preset.train).wanted
    assert copy_bytes(learner, wanted, True, host) == held.copy and copy_bytes(learner, wanted, True, device) == 0
    there: dict[torch.device, int] = {}
    monkeypatch.setattr(forecast, "memory_of", lambda place: (0, there[place]))
    for of_host, of_device, fits in ((held.copy, held.training, True), (held.copy - 1, held.training, False), (held.copy, held.training - 1, False)):
        there |= {host: of_host, device: of_device}
        assert bool(too_large(preset, vocab_size, device)) != fits
    for of_host, fits in ((sum(held), True), (sum(held) - 1, False)):
        there[host] = of_host
        assert bool(too_large(preset, vocab_size, host)) != fits


@pytest.mark.parametrize("unit", ["", "hyena", "mamba2", "moe"])
def test_what_muon_holds_is_counted_with_one_moment_of_a_matrix(unit: str, tiny: Tiny) -> None:
    """In the menu and before a model is built at most what is really held, so that none that fits is refused; beside a run all of it."""
    preset = tiny(train={"optimizer": "muon"}, model={"hidden_size": 64}, **({unit: {"enabled": True}} if unit else {}))
    learner = Learner(build_model(preset, 500))
    optimizer = build_optimizer(learner, preset.train)
    weights = sum(parameter.nbytes for parameter in learner.parameters())
    held, moments = held_bytes(preset, 500), sum(parameter.nbytes * optimizer.wanted(parameter) for parameter in learner.parameters())
    assert copy_bytes(learner, optimizer.wanted, False, torch.device("cpu")) == weights + moments
    assert 0.95 * (weights + moments) < held.copy <= weights + moments < 3 * weights
    assert held.training == held.copy + weights


def test_memory_that_runs_out_while_it_is_counted_is_no_end(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row is tried, which says itself what can't be done."""

    def full(*given: object) -> int:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr("lm.training.step.kept_bytes", full)
    recorder = trained(tiny(), tmp_path, 2)
    assert recorder.of("forecast")[0]["rows"] == 1 and len(recorder.of("step")) == 2


def test_the_time_of_a_run_is_told_after_a_few_steps(tiny: Tiny, tmp_path: Path) -> None:
    recorder = trained(tiny(), tmp_path, 10)
    memory, told = recorder.of("forecast")
    kinds = [event["event"] for event in recorder.events]
    assert kinds.index("forecast") < kinds.index("step"), "memory is told before the first step"
    assert kinds[: kinds.index("forecast", kinds.index("step"))].count("step") == 4
    assert memory["free_bytes"] > 0
    assert told["seconds"] == pytest.approx(6 * STEP / told["tokens_per_second"])
    assert 0 < told["device_share"] < 1


def test_the_pace_that_is_kept_is_that_of_the_run_by_now(tiny: Tiny, tmp_path: Path) -> None:
    """First what the forecast told, then that of each snapshot; not that of the two steps after one, which say little."""
    told, kept = [], []

    def look(event: Mapping[str, Any]) -> None:
        told.append(event)
        kept.append(kept_pace(tmp_path, preset))

    preset = tiny(train={"snapshot_every_tokens": 10 * STEP})
    train(preset, tmp_path, 13 * STEP, observers=(look,))
    steps = [place for place, event in enumerate(told) if event["event"] == "step"]
    (foretold,) = (place for place, event in enumerate(told) if "device_share" in event and event["event"] == "forecast")
    (run,) = (event for event in told if event["event"] == "run")
    devices = run["device"]
    assert kept[steps[3]] is None and len(steps) == 13
    reading = kept[foretold].reading_bytes
    first, last = ((told[at]["tokens_per_second"], devices, pytest.approx(told[at]["device_share"]), reading) for at in (foretold, steps[10]))
    assert kept[foretold] == kept[steps[10]] == first
    assert kept[steps[11]] == kept_pace(tmp_path, preset) == last != kept[foretold]


def test_each_step_tells_its_share_of_the_peak_by_rows_as_long_as_they_are_now(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """8 steps with rows of 16 tokens, then 8 with rows of 64, whose attention has more to do."""
    counted = []
    monkeypatch.setattr("lm.training.loop.peak_products", lambda device, precision: 1e9)
    monkeypatch.setattr("lm.training.loop.operations_per_token", lambda *given: counted.append(given[2]) or operations_per_token(*given))
    ramp = tiny(train={"seq_length_curriculum": [{"until_tokens": 2 * STEP, "seq_length": 16}]})
    recorder = trained(ramp, tmp_path, 10)
    vocab_size, steps = len(Snapshots(tmp_path).read("current").weights["model.embedding.weight"]), recorder.of("step")
    work = {length: operations_per_token(tiny(model={"seq_length": length}), vocab_size) for length in (16, 64)}
    assert work[16] < work[64] and sorted(counted) == [16, 64], "counted once for each"
    assert not any("device_share" in event for event in steps[:4]), "until the peak is measured"
    for event, length in zip(steps[4:], [16] * 4 + [64] * 8, strict=True):
        assert event["device_share"] == pytest.approx(work[length] * event["tokens_per_second"] / 1e9, rel=1e-9)
    told = recorder.of("forecast")
    (share,) = (event["device_share"] for event in told if "device_share" in event)
    assert share == pytest.approx(work[16] * steps[3]["tokens_per_second"] / 1e9, rel=1e-9)


def test_what_is_measured_for_the_forecast_makes_no_step_slower(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lm.training.loop.peak_products", lambda device, precision: time.sleep(2) or 1e9)
    assert trained(tiny(), tmp_path, 6).of("step")[4]["tokens_per_second"] > 2 * STEP


def test_a_pace_is_known_of_what_was_measured_alone(tiny: Tiny, tmp_path: Path) -> None:
    """Not of another model, and not of the same one that is trained otherwise."""
    pace = Pace(2000.0, "8 x NVIDIA H200", 0.4)
    keep_pace(tmp_path, tiny(), pace)
    assert kept_pace(tmp_path, tiny()) == kept_pace(tmp_path, tiny(train={"learning_rate": 0.5})) == pace
    assert kept_pace(tmp_path, tiny(model={"num_layers": 3})) is None
    others = {"optimizer": ("adamw", "muon"), "precision": ("auto", "float32", "bfloat16"), "compile": ("auto", "on", "off"), "per_gpu_batch_size": (4, 5)}
    for switch, values in others.items():
        found = [kept_pace(tmp_path, tiny(train={switch: value})) for value in values]
        assert found.count(pace) == 1 and found.count(None) == len(values) - 1, switch
    for other in (
        {"auxiliary": {"enable_dynamics": True}},
        {"train": {"accumulation_steps": 16}},
        {"train": {"average_tokens": 1000}},
        {"data": {"vocab_size": 600}},
        {"model": {"logit_soft_cap": 30.0}},
        {"s5": {"enabled": True}},
    ):
        assert kept_pace(tmp_path, tiny(**other)) is None, other
    unlike = tiny(train={"evaluate_every_tokens": 5, "seed": 3}, s5={"state_size": 32}, generation={"temperature": 0.5})
    assert kept_pace(tmp_path, unlike.model_copy(update={"about": "Mine."})) == pace


def test_ranks_say_how_many_devices_they_have(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pace is that of all of them."""
    ranks = Ranks(tiny().train)
    alone = device_in_words(ranks)
    monkeypatch.setattr(ranks, "size", 8)
    assert alone == "CPU (1 thread), float32" and device_in_words(ranks) == f"8 x {alone}"


def test_no_time_is_told_where_nothing_is_left_to_read(tiny: Tiny, tmp_path: Path) -> None:
    (memory,) = trained(tiny(), tmp_path, 4).of("forecast")
    assert "rows" in memory


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H200", 989e12),
        ("NVIDIA H200 NVL", 835e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", None),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GH200 480GB", None),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090", 71e12),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA A100-SXM4-80GB MIG 1g.10gb", None),
    ],
)
def test_a_device_is_known_by_its_whole_name(name: str, peak: float | None) -> None:
    assert peak_by_name(name) == peak


def test_words() -> None:
    assert [in_hours(seconds) for seconds in (5, 119, 120, 7199, 7200, 80 * 3600.0)] == [
        "5 seconds",
        "119 seconds",
        "2 minutes",
        "120 minutes",
        "2 hours",
        "3 days",
    ]
    told = duration_told(100_000_000, 1340.0, 6e7, 4e11)
    assert told["text"] == "100,000,000 tokens are to be read: about 21 hours at 1,340 a second, 20% of what the device can multiply"
    assert duration_told(1000, 10.0, None, None)["text"] == "1,000 tokens are to be read: about 100 seconds at 10 a second"


def test_operations_are_six_for_each_number_and_what_attention_adds() -> None:
    """Counted by torch itself for a step of the default preset, whose rows are full: its products, and attention's over all pairs, which ours halves."""
    from torch.utils.flop_counter import FlopCounterMode

    preset = load_preset("configs/00_best_general.json")
    preset = preset.model_copy(update={"model": preset.model.model_copy(update={"seq_length": 128})})
    model, tokens = build_model(preset, 1000), torch.randint(1000, (1, 128), generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter:
        model(tokens).logits.sum().backward()
    matrices = sum(count for layer in [counter.get_flop_counts()["Global"]] for name, count in layer.items() if "attention" not in str(name))
    of_attention = 6.0 * preset.model.num_layers * preset.model.num_heads * preset.model.head_size * 128
    count = count_parameters(preset, 1000)
    told = operations_per_token(preset, 1000)
    assert told == 6.0 * count.active + of_attention
    assert operations_per_token(preset, 1000, 32) == 6.0 * count.active + of_attention / 4
    assert matrices / 128 == pytest.approx(told - of_attention, rel=0.01)


def test_memory_and_speed_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    device = torch.device("cpu")
    free, total = memory_of(device)
    assert 0 < free <= total
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert memory_of(device)[1] == total // 4
    (tmp_path / "memory.max").write_text("4000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    monkeypatch.setattr(host, "OWN_GROUP", tmp_path / "own")
    assert memory_of(device) == (750, 1000) and host.host_bytes() == 4000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_of(device)[1] == host.host_bytes() // 4 == total // 4, "no limit is none"
    assert 1e9 < peak_products(device, "float32") < 1e14


@pytest.mark.parametrize("words", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"])
def test_a_peak_is_not_told_where_there_is_no_memory_to_measure_it(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*size: int, **options: Any) -> torch.Tensor:
        raise RuntimeError(words)

    monkeypatch.setattr(torch, "rand", full)
    assert peak_products.__wrapped__(torch.device("cpu"), "float32") is None


def test_a_container_with_the_first_version_of_control_groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    monkeypatch.setattr(host, "OWN_GROUP", tmp_path / "own")
    (tmp_path / "memory").mkdir()
    for name, text in {"limit_in_bytes": "5000", "usage_in_bytes": "3000", "stat": "total_inactive_file 1000"}.items():
        (tmp_path / "memory" / f"memory.{name}").write_text(text + "\n")
    assert host.group_bytes() == (5000, 3000)


def test_the_tightest_control_group_on_the_way_to_the_root_is_the_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What they read from files and don't use is free. Files that are missing or say something else limit nothing."""
    monkeypatch.setattr(host, "CGROUP", tmp_path)
    monkeypatch.setattr(host, "OWN_GROUP", tmp_path / "own")
    job, above = tmp_path / "user.slice/job", tmp_path / "user.slice"
    job.mkdir(parents=True)

    def written(folder: Path, **files: str) -> tuple[int, int]:
        for name, text in files.items():
            (folder / f"memory.{name}").write_text(text + "\n")
        return host.group_bytes()

    there = host.host_bytes()
    assert host.group_bytes() == (sys.maxsize, sys.maxsize), "no file at all"
    assert written(job, max="4000", current="1000") == (sys.maxsize, sys.maxsize), "nothing tells that this group is ours"
    (tmp_path / "own").write_text("5:memory:/other\n0::/user.slice/job\n")
    assert host.group_bytes() == (4000, 3000) and memory_of(torch.device("cpu")) == (3000, 4000)
    assert written(job, stat="active_file 500\ninactive_file 300\nslab 7") == (4000, 3300)
    assert written(job, stat="inactive_file 9999") == (4000, 4000), "used is never less than nothing"
    assert written(above, max="5000", current="4900") == (4000, 100), "others in the slice took what was left"
    assert written(above, max="3000", current="0") == (3000, 3000)
    assert written(tmp_path, max="2000", current="2500") == (2000, 0)
    assert written(tmp_path, max="max") == written(tmp_path, max="odd") == written(tmp_path, max="") == (3000, 3000)
    assert written(job, stat="inactive_file odd", current="odd") == (3000, 3000)
    (tmp_path / "own").write_bytes(b"0::/\xff\xfe\0\n")
    assert host.group_bytes() == (sys.maxsize, sys.maxsize) and host.host_bytes() == there
