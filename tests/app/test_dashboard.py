"""The live screen, drawn from a made-up run: it fits any size, says what happened, and takes no harm from hostile text."""

import io
import math
import os
import random
import re
import signal
import time

import pytest
from rich.console import Console

from lm.app import curve, panels
from lm.app.dashboard import Dashboard, lines_of
from lm.app.evaluate_screen import table_of
from lm.app.facts import Facts
from lm.app.interrupts import Interrupts
from lm.app.past import past_losses
from lm.app.printed import Printed
from lm.app.text import spans, wrapped
from lm.app.words import clean, counted, duration, figure, one_line, rate
from tests.app.events import HOSTILE, evaluation, opening, step, whole_run
from tests.picture import picture

SIZES = [(80, 24), (200, 50), (120, 36), (56, 14), (110, 30), (109, 80), (20, 10), (1, 1), (300, 100), (60, 200)]


def told(events) -> Facts:
    facts = Facts(clock=lambda: 1_700_000_000.0)
    for event in events:
        facts(event)
    return facts


@pytest.fixture(scope="module")
def run() -> Facts:
    return told(whole_run(6_000_000))


def screen(facts: Facts, width: int, height: int) -> str:
    return "\n".join(line.plain for line in lines_of(facts, width, height))


@pytest.mark.parametrize(("width", "height"), SIZES)
@pytest.mark.parametrize("moment", ["before", "opening", "first step", "run"])
def test_every_size_is_filled_exactly(run, width, height, moment):
    first = [*opening(), step(1, 4096, random.Random(1))]
    facts = {"before": told([]), "opening": told(opening()), "first step": told(first), "run": run}[moment]
    lines = lines_of(facts, width, height)
    assert len(lines) == height and {line.cell_len for line in lines} == {width}


@pytest.mark.parametrize(("width", "height"), [(80, 24), (200, 50)])
def test_all_of_it_is_there(run, width, height):
    text = screen(run, width, height)
    for words in ("best_general", "10.5M parameters", "6.00M of 100M tokens", "6.0%", "h", "left", "tokens/s", "3.0e-3", "1.3 GB", "8 x (attention, swiglu)"):
        assert words in text, words
    for words in (
        "wikipedia",
        "natural_questions",
        "waiting: no route to hugging",
        "(epoch 2)",
        "perplexity",
        "The history of the city goes back to",
        "Ctrl-C",
    ):
        assert words in text, words
    assert "snapshot saved" in text and f"{run.loss:.3f}" in text
    assert any("\u2801" <= character <= "\u28ff" for character in text)


def test_the_next_try_is_counted_down(run):
    assert "next try in 12 s" in screen(run, 200, 50)


def test_stopping_is_shown_at_once(run):
    run.stop()
    assert "stopping and saving" in screen(run, 80, 24) and "again leaves at once" in screen(run, 80, 24)
    run.stopping = False


def test_hostile_text_is_only_text():
    names = [HOSTILE, "[/]", "\x1b[31m", "x" * 300, "東京" * 40]
    run_, *rest = opening(names)[2:]
    events = [{**run_, "preset": HOSTILE, "plan": HOSTILE, "device": HOSTILE}, *rest, {"event": "notice", "text": HOSTILE + "\n\r\x08" * 9}]
    told_of = {"loss": None, "share": 0.1, "tokens": 0, "state": "waiting", "reason": HOSTILE * 9, "next_try": None, "epoch": 0, "documents": 0}
    events += [{**step(n, 4096 * n, random.Random(n)), "sources": dict.fromkeys(names, told_of)} for n in range(1, 9)]
    events += [
        {"event": "source", "name": HOSTILE, "state": HOSTILE, "reason": HOSTILE},
        {"event": "sample", "tokens": 1, "prompt": HOSTILE, "text": HOSTILE * 50},
    ]
    events += [{**evaluation(5, 3.0), "sources": {HOSTILE: evaluation(5, 3.0)["sources"]["wikipedia"]}}, {"event": "unheard of"}]
    facts = told(events)
    for width, height in SIZES:
        out = io.StringIO()
        console = Console(file=out, force_terminal=True, width=width, height=height)
        console.print(Dashboard(facts))
        drawn = out.getvalue()
        drawn.encode("utf-8")
        assert "\x1b[2J" not in drawn and "\x1b]" not in drawn and "\x07" not in drawn and "\u202e" not in drawn and "\x9b" not in drawn
        assert len(drawn.rstrip("\n").split("\n")) <= height
    assert "[bold red]not markup[/]" in screen(facts, 200, 50)


def test_odd_numbers_are_dashes():
    chance = random.Random(0)
    odd = step(3, 12_288, chance) | {"loss": math.nan, "gradient_norm": math.inf, "skipped": 2}
    facts = told([*opening(), step(1, 4096, chance), step(2, 8192, chance), odd])
    text = screen(facts, 80, 30)
    assert "nan" not in text and "inf" not in text and math.isfinite(facts.loss)
    assert "skipped" in screen(facts, 200, 50)
    screen(told([*opening(), odd]), 80, 24)


def test_many_sources_leave_room_and_show_the_troubled():
    names = [f"source {number}" for number in range(64)]
    sources = step(1, 4096, random.Random(0))["sources"]["wikipedia"]
    event = step(1, 4096, random.Random(0)) | {"sources": dict.fromkeys(names, sources)}
    event["sources"]["source 50"] = sources | {"state": "given up", "reason": "no such column"}
    text = screen(told([*opening(names), event]), 80, 24)
    assert "source 50" in text and "no such column" in text and "more" in text and "loss" in text


def test_the_curve_falls_from_left_to_right():
    drawing = curve.draw([(4096.0 * n, 9 - math.log10(n)) for n in range(1, 3000)], 60, 14)
    assert len(drawing.rows) == 12 and len({len(row) for row in drawing.rows}) == 1
    tops = [min(row for row in range(12) if drawing.rows[row][column] not in " \u2800") for column in range(len(drawing.rows[0]))]
    assert tops == sorted(tops) and tops[0] == 0 and tops[-1] == 11
    assert "100k" in drawing.below and drawing.below.rstrip().endswith("12.3M")
    assert [label for label in drawing.labels if "8" in label]


@pytest.mark.parametrize("points", [[], [(1.0, 2.0)], [(5.0, 3.0), (5.0, 3.0)], [(1.0, 1e9), (2.0, -1e9)], [(1e8, 2.0), (1e8 + 1, 2.0)]])
@pytest.mark.parametrize(("width", "height"), [(2, 1), (10, 3), (80, 20)])
def test_any_points_can_be_drawn(points, width, height):
    drawing = curve.draw(points, width, height)
    assert len(drawing.rows) == len(drawing.labels) == max(height - 2, 1)


def test_the_curve_keeps_few_points():
    line = curve.Curve()
    for number in range(1, 200_000):
        line.add(number * 4096.0, 3.0)
    line.add(1.0, math.nan)
    assert len(line.points) < 10_000 and all(math.isclose(y, 3.0) for _, y in line.points)


def test_the_past_of_this_run_is_read_from_the_journal(tmp_path):
    journal = tmp_path / "run.jsonl"
    rows = [(4096, 4096, 9.0), (6000, 6000, 9.0), (8192, 8192, 8.0), (4096, 12_288, 7.0), (8192, 16_384, 6.5), (8192, 16_384, 6.0), (12_288, 20_480, 5.0)]
    lines = [f'{{"event": "step", "tokens": {tokens}, "life_tokens": {life}, "loss": {loss}}}' for tokens, life, loss in rows]
    journal.write_text("torn\n" + "\n".join(lines) + '\n{"event": "step", "tok')
    assert list(past_losses(journal, 8192, 16_384)) == [(4096, 7.0), (8192, 6.0)]
    assert list(past_losses(tmp_path / "none", 1, 1)) == []


def test_printed_lines():
    out, now = io.StringIO(), [0.0]
    printed = Printed(Facts(), out, clock=lambda: now[0])
    for event in whole_run(4_100_000):
        now[0] += 0.5
        printed(event)
    lines = out.getvalue().splitlines()
    assert any("10.5M parameters" in line for line in lines) and any("fineweb_edu is waiting: no route" in line for line in lines)
    assert 40 <= sum(" of 100M tokens · loss " in line for line in lines) <= 60
    assert any("it writes: The history" in line for line in lines) and any("held-out text: perplexity" in line for line in lines)


def test_a_reader_that_goes_away_is_noticed_and_a_full_disk_is_not():
    class Deaf(io.StringIO):
        def write(self, text):
            raise self.error

    deaf, gone = Deaf(), []
    printed = Printed(Facts(), deaf, on_deaf=lambda: gone.append(True))
    deaf.error = OSError(28, "No space left on device")
    printed.line("to a full disk")
    assert not gone
    deaf.error = BrokenPipeError()
    printed.line("to nobody")
    assert gone


def test_a_closed_terminal_asks_to_stop_and_ends():
    said = []
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # where these tests run under nohup it is ignored
    with Interrupts(lambda: said.append("asked"), lambda: said.append("left")) as interrupts:
        os.kill(os.getpid(), signal.SIGHUP)
        for _ in range(100):
            time.sleep(0.02)
            if interrupts.asked():
                break
        assert interrupts.asked() and interrupts.ends and said == ["asked"]
    assert signal.signal(signal.SIGHUP, before) is signal.SIG_DFL


def test_keys_and_log_stay_where_there_is_little_room(run):
    for height in (14, 16, 20):
        assert "Ctrl-C" in screen(run, 60, height).splitlines()[-1]


def test_what_is_not_known_yet_is_a_dash():
    text = screen(told(opening()), 80, 24)
    assert "– nats" not in text and "– tokens/s" not in text and "not opened yet" in text


def with_experts(loads: dict[int, list[float]]) -> Facts:
    events = [*opening(), *(step(n, 4096 * n, random.Random(n)) for n in (1, 2)), evaluation(8192, 3.0)]
    units = {f"{layer}.moe.load": load for layer, load in loads.items()} | {"1.other.share": [3.0]}
    sample = {"event": "sample", "tokens": 8192, "prompt": "The history of", "text": " the city goes back to the early years of the war."}
    return told([*events, sample, step(3, 12_288, random.Random(3)) | {"units": units}])


EXPERTS = {
    "none": {},
    "four layers": {1: [9.0, 11.0, 0.0, 20.0], 3: [10.0, 10.0, 10.0, 10.0], 5: [1.0, 2.0, 3.0, 4.0], 7: [39.0, 1.0, 0.0, 0.0]},
    "many": {layer: [float(expert % 7) for expert in range(160)] for layer in range(60)},
    "nothing read": {1: [0.0, 0.0]},
}


@pytest.mark.parametrize("loads", EXPERTS.values(), ids=EXPERTS.keys())
@pytest.mark.parametrize(("width", "height"), SIZES)
def test_experts_fit_every_size(loads, width, height):
    lines = lines_of(with_experts(loads), width, height)
    assert len(lines) == height and {line.cell_len for line in lines} == {width}


def test_loads_of_experts_are_shown_and_push_nothing_away():
    facts = with_experts(EXPERTS["four layers"])
    small, large = screen(facts, 80, 24), screen(facts, 200, 50)
    for text in (small, large):
        assert "experts the busiest reads 3.90 times the mean, in layer 7" in text
        for words in ("wikipedia", "natural_questions", "tokens/s", "held-out", "perplexity", "it writes", "The history", "log", "Ctrl-C"):
            assert words in text, words
    assert "  1 ▄▄·█ 2.00     3 ▄▄▄▄ 1.00     5 ▂▃▅▆ 1.60     7 █▁·· 3.90" in large
    assert "in layer 7 █▁··" in small and "in layer 7 ─" in large
    assert sum(any("\u2801" <= character <= "\u28ff" for character in line) for line in small.splitlines()) >= 1, "the curve has a place"
    for quiet in ("none", "nothing read"):
        assert "experts" not in screen(with_experts(EXPERTS[quiet]), 200, 50)
    assert "experts" not in screen(facts, 60, 14)


def test_many_experts_share_bars():
    assert panels.bars([1.0, 9.0, 2.0, 0.0], 2) == "█▃" and panels.bars([5.0] * 100, 30) == "▄" * 25
    text = screen(with_experts(EXPERTS["many"]), 120, 36)
    assert "experts the busiest" in text and "▄" in text


def with_memory(**more) -> Facts:
    memory = [{"chunks": 1_200 * n, "asked_seconds": 0.012, "added_seconds": 0.0034} for n in (1, 2)]
    events = [*opening(), *(step(n, 4096 * n, random.Random(n)) | {"memory": memory[n - 1]} for n in (1, 2)), evaluation(8192, 3.0) | more]
    sample = {"event": "sample", "tokens": 8192, "prompt": "The history of", "text": " the city goes back to the early years of the war."}
    return told([*events, sample])


def test_the_memory_is_shown_and_pushes_nothing_away():
    without = {"without_memory": {"bits_per_byte": 2.3456}}
    for width, height in SIZES:
        for facts in (with_memory(), with_memory(**without)):
            lines = lines_of(facts, width, height)
            assert len(lines) == height and {line.cell_len for line in lines} == {width}
    small, large = (screen(with_memory(**without), *size) for size in ((80, 24), (200, 50)))
    for text in (small, large):
        assert "memory 2,400 chunks · asks 12 ms, adds 3.4 ms a step · 2.346 bits/byte without" in text
        for words in ("wikipedia", "natural_questions", "tokens/s", "held-out", "perplexity", "it writes", "The history", "log", "Ctrl-C"):
            assert words in text, words
    assert any("\u2801" <= character <= "\u28ff" for character in small), "the curve has a place"
    assert "without" not in screen(with_memory(), 200, 50) and "chunks" not in screen(with_experts({}), 200, 50)


def test_weights_are_measured_beside_their_average():
    averaged = evaluation(8192, 3.0)
    averaged |= {"without_average": {"cross_entropy": 3.1, "perplexity": 22.198, "bits_per_byte": 1.2345, "tokens": 8192}}
    facts = told([*opening(), step(1, 4096, random.Random(1)), averaged])
    for width, height in SIZES:
        lines = lines_of(facts, width, height)
        assert len(lines) == height and {line.cell_len for line in lines} == {width}
    assert "bits per byte 1.034 (1.234 not averaged)" in screen(facts, 80, 24)
    assert re.search(r"not averaged +22\.2 +1\.234", screen(facts, 200, 50))
    assert "1.034 bits per byte (1.234 not averaged)" in facts.log[-1].text
    shown = io.StringIO()
    Console(file=shown, width=120).print(table_of(averaged))
    assert re.search(r"not averaged +3.1000 +22.20 +1.2345 +8,192", shown.getvalue())
    assert "not averaged" not in screen(told([*opening(), evaluation(8192, 3.0)]), 200, 50)


NINE = ("second_next", "reconstruction", "value", "dynamics", "dynamics_kl", "dynamics_value", "policy", "latent_consistency", "span_contrastive")


def with_heads(shares: dict[str, float], names: tuple[str, ...] = NINE) -> Facts:
    """A run with losses beside the next token's, whose shares were measured in the second step."""
    begun = [event | ({"loss_weights": dict.fromkeys(names, 0.05)} if event["event"] == "run" else {}) for event in opening()]
    told_of = {name: 10.0 / 3**number for number, name in enumerate(names)}
    events = [step(n, 4096 * n, random.Random(n)) for n in (1, 2, 3)]
    events = [event | {"losses": event["losses"] | told_of} | ({"gradient_shares": shares} if event["step"] == 2 else {}) for event in events]
    sample = {"event": "sample", "tokens": 8192, "prompt": "The history of", "text": " the city goes back to the early years of the war."}
    return told([*begun, *events, evaluation(8192, 3.0), sample])


ALL_SHARES = {"next_token": 0.606} | dict(zip(NINE, (0.08, 0.0, 0.02, 0.03, 0.05, 0.0041, 0.0002, 0.1, 0.106), strict=True))


def test_all_losses_are_shown_with_weights_and_shares_and_push_nothing_away():
    for shares in (ALL_SHARES, {}):
        for width, height in SIZES:
            lines = lines_of(with_heads(shares), width, height)
            assert len(lines) == height and {line.cell_len for line in lines} == {width}
    facts = with_heads(ALL_SHARES)
    for text in (screen(facts, 80, 24), screen(facts, 200, 50), screen(facts, 110, 30)):
        assert "losses next token 60.6% of the gradient ─" in text
        for words in ("reconstruction 3.33×0.05 idle", "policy 0.0137×0.05 idle", "dynamics value 0.0412×0.05 0.4%", "span contrastive 0.00152×0.05 10.6%"):
            assert words in text, words
        assert all(name.replace("_", " ") in text for name in NINE)
        for words in ("wikipedia", "natural_questions", "tokens/s", "held-out", "perplexity", "it writes", "The history", "log", "Ctrl-C"):
            assert words in text, words
        assert any("\u2801" <= character <= "\u28ff" for character in text), "the curve has a place"
    assert "losses ─" in screen(with_heads({}), 200, 50) and "second next 10×0.05" in screen(with_heads({}), 80, 24)
    assert "losses" not in screen(with_heads({}, ()), 200, 50)


def test_losses_that_do_nothing_come_first():
    lines = [line.plain for line in panels.losses(with_heads(ALL_SHARES), 60, 2)]
    assert len(lines) == 2 and lines[1].count("idle") == 2


def test_the_printed_line_says_how_much_is_remembered():
    out = io.StringIO()
    printed = Printed(Facts(), out, clock=lambda: 0.0)
    for event in [*opening(), step(1, 4096, random.Random(1)) | {"memory": {"chunks": 12_345, "asked_seconds": 0.0, "added_seconds": 0.0}}]:
        printed(event)
    assert "tokens/s · 12.3k chunks in memory" in out.getvalue()


def test_a_step_of_an_older_journal_knows_no_units():
    old = step(3, 12_288, random.Random(3))
    assert "units" not in old and told([*opening(), old]).busiest is None


def test_the_printed_line_says_how_busy_the_busiest_is():
    out = io.StringIO()
    printed = Printed(Facts(), out, clock=lambda: 0.0)
    for event in [*opening(), step(1, 4096, random.Random(1)) | {"units": {"3.moe.load": [1.0, 3.0]}}]:
        printed(event)
    assert "tokens/s · busiest expert 1.50 times the mean" in out.getvalue()


def test_the_picture_needs_no_rare_font():
    svg = picture(event | {"at": "2026-01-02T03:04:05+00:00"} for event in whole_run(200_000))
    assert svg.startswith("<svg") and "<circle" in svg and not any("\u2801" <= character <= "\u28ff" for character in svg)
    assert "best_general" in svg.replace("&#160;", " ")


def test_words():
    counts = {
        0: "0",
        9999: "9,999",
        10_000: "10k",
        12_345: "12.3k",
        99_999: "100k",
        999_999: "1.00M",
        3_250_000: "3.25M",
        100_000_000: "100M",
        12 * 10**9: "12B",
    }
    assert {number: counted(number) for number in counts} == counts
    assert [duration(seconds) for seconds in (0, 59, 61, 3600 * 3.2, 86_400 * 2.5)] == ["0 s", "59 s", "1 min", "3 h 12 min", "2 d 12 h"]
    assert (figure(None, 2), figure(math.nan, 2), figure(1234.5, 1), rate(3e-3), rate(None)) == ("–", "–", "1,234.5", "3.0e-3", "–")
    assert clean("a\x1b[31mb\x1b]8;;http://x\x1b\\c\td\ne\ud800\u200b") == "abc\td\ne" and one_line(" a\n\n b ") == "a b"


@pytest.mark.parametrize(("text", "width"), [("a few words that are wrapped", 9), ("x" * 40, 7), ("東京" * 9, 5), ("", 4), ("a  b   c", 3)])
def test_wrapping_loses_nothing(text, width):
    lines = wrapped(spans(text), width, 99)
    assert all(line.cell_len <= width for line in lines)
    assert "".join(line.plain for line in lines).replace(" ", "") == text.replace(" ", "")


def test_what_decides_over_the_data_is_said():
    weights = {"event": "weights", "tokens": 10, "weights": {"wikipedia": 0.6, HOSTILE: 0.4}}
    facts = told([*opening(), {"event": "certificate", "exact": False, "text": "the data goes on otherwise"}, weights])
    assert [(line.text.split(":")[0], line.tone) for line in list(facts.log)[-2:]] == [
        ("the data goes on otherwise", "warning"),
        ("sources are now read by their losses", "quiet"),
    ]
    assert "wikipedia 60%" in screen(facts, 100, 40)


def test_a_notice_names_its_source_once():
    facts = told(
        [{"event": "notice", "source": "c4", "text": text} for text in ("new in this mix", "c4: read too often")] + [{"event": "notice", "text": "on"}]
    )
    assert [line.text for line in facts.log] == ["c4: new in this mix", "c4: read too often", "on"]


def test_where_a_run_goes_on_is_known_before_its_sources_are_open():
    begun = [{**event, "tokens": 700, "life_tokens": 900} if event["event"] == "run" else event for event in opening() if event["event"] != "resume"]
    facts = told(begun)
    assert (facts.tokens, facts.life_tokens) == (700, 900)


def test_the_share_of_peak_speed_is_the_newest():
    """Of a journal without it in its steps, the forecast's."""
    chance = random.Random(1)
    forecast = {"event": "forecast", "text": "", "device_share": 0.07}
    facts = told([*opening(), step(1, 4096, chance), forecast, step(2, 8192, chance)])
    assert "of peak speed (MFU)   7%" in screen(facts, 80, 24)
    for share in (0.21, 0.43):
        facts(step(3, 12_288, chance) | {"device_share": share})
    assert "of peak speed (MFU)  43%" in screen(facts, 80, 24) and re.search(r"of peak speed \(MFU\) +43%", screen(facts, 200, 50))
    facts(step(4, 16_384, chance) | {"device_share": 1.0})
    assert "of peak speed (MFU) 100%" in screen(facts, 80, 24)


def test_how_long_a_run_takes_is_not_judged_by_its_first_step():
    facts, steps = Facts(), [event for event in whole_run(200_000) if event["event"] == "step"][:2]
    facts(steps[0] | {"tokens_per_second": 5.0})
    assert facts.seconds_left is None
    facts(steps[1])
    assert facts.seconds_left == (facts.budget - facts.tokens) / steps[1]["tokens_per_second"]
