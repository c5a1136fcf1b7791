"""The menu through a pseudo-terminal: what stands there, what the keys do, what is imported for it."""

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from lm.app import life
from lm.app.details import details
from lm.app.shelf import Shelved, default_of, read_shelf
from lm.preset import Preset, count_parameters
from lm.training.paces import Pace, keep_pace
from tests.app.conftest import TINY, write_preset
from tests.app.person import MAIN, ROOT, Person, environment

HEAVY = ("torch", "transformers", "datasets", "numpy", "pyarrow", "rich", "tokenizers", "accelerate", "huggingface_hub")
UNTIMED = "t times a few steps here; else the first ones of a run will tell it\n"
PANE = 51  # columns of the details on a screen of 80


def test_nothing_heavy_is_imported_for_the_menu(folder):
    script = "import sys, runpy; from prompt_toolkit.application import Application; Application.run = lambda self: print(*sys.modules) or sys.exit(7); "
    script += "import lm.app.terminal as t; t.is_terminal = lambda: True; sys.argv = ['main.py']; runpy.run_path('main.py', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", script], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    assert "lm.app.menu" in done.stdout.split()
    assert not {name for name in done.stdout.split() if name.split(".")[0] in HEAVY}


@pytest.mark.parametrize("argument", ["--help", "x", "-v", ""])
def test_any_argument_is_refused_in_one_line(folder, argument):
    done = subprocess.run([*MAIN, argument], cwd=folder, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == "" and len(done.stderr.splitlines()) == 1


def test_main_is_short():
    assert len((ROOT / "main.py").read_text().splitlines()) < 60


def test_all_of_it_is_found_on_80_by_24(folder):
    with Person(MAIN, folder) as person:
        text = person.waits_for("q quit")
        for words in ("Perennial", "No model yet", "❯ best_general", "best_qa", "my_documents"):
            assert words in text
        for words in ("The world in general", "M parameters", "8 x (attention, relu2)", "35%  wikipedia", "5%  installed_docs"):
            assert words in text
        person.types("down")
        assert "❯ best_qa" in person.text and "Questions and answers first" in person.text
        person.types("\x1b[F")
        for words in ("Chat", "Evaluate", "What it has read", "Presets", "Compare", "Go back", "Export", "❯ Quit"):
            assert words in person.text
        person.types("enter")
        assert person.ends() == 0


@pytest.mark.parametrize("key", ["q", "ctrl-c", "ctrl-d", "\x1b"])
def test_leaving_is_quiet(folder, key):
    with Person(MAIN, folder) as person:
        person.waits_for("q quit")
        person.types(key)
        assert person.ends() == 0
        assert "Traceback" not in person.raw and "\x1b[?1049l" in person.raw


def test_broken_presets_are_shown_and_not_picked(folder):
    write_preset(folder, "90_torn", '{"name": "torn", ')
    write_preset(folder, "91_misspelt", {**TINY, "modle": {}})
    write_preset(folder, "93_hostile", {**TINY, "name": "[red]x[/]\u001b[2J\u202e", "about": "\u001b]0;owned\u0007[bold]"})
    with Person(MAIN, folder, 100, 40) as person:
        person.waits_for("q quit")
        person.goes_to("90_torn")
        assert "not JSON" in person.text
        person.types("enter", "down")
        assert 'unknown key, did you mean "model"' in person.text
        person.types("enter", "down")
        assert "❯ [red]x[/]" in person.text and "owned" not in person.raw
        assert person.child.isalive()


def test_what_a_token_uses_is_said_beside_the_parameters_where_it_is_less():
    def said(tokenizer="bpe", **sections):
        raw = {"model": {"num_layers": 8}, "data": {"sources": ["c4"], "tokenizer": tokenizer, "vocab_size": 8192}, **sections}
        return "".join(text for _, text in details(Shelved(Path("a.json"), Preset.model_validate(raw), ""), 78, None))

    experts = {"moe": {"enabled": True, "layers": "odd"}}
    assert "15.0M parameters (8.53M active), 256 tokens in a row" in said(**experts)
    assert "12.9M parameters (6.44M active) and the vocabulary of gpt2" in said("gpt2", **experts)
    assert "active" not in said()


def test_memory_and_speed_are_said_before_anything_starts(tmp_path, monkeypatch):
    def said(**model):
        raw = {"name": "a", "model": {"num_layers": 8, **model}, "data": {"sources": ["c4"], "vocab_size": 8192}}
        shelved = Shelved(tmp_path / "a.json", Preset.model_validate(raw), "")
        return shelved.preset, details(shelved, 120, None)

    monkeypatch.setattr("lm.app.details.CHECKPOINTS", tmp_path)
    monkeypatch.setattr("lm.app.details.host_bytes", lambda: 16 * 10**9)
    preset, shown = said()
    needed = f"{28 * count_parameters(preset, 8192).total / 1e6:.0f} MB for weights, moments and snapshots, more for steps; this machine has 16.0 GB"
    assert ("", f"{needed}\n") in shown and ("", UNTIMED) in shown
    keep_pace(tmp_path, preset, Pace(2000.0, "2 x CPU (1 thread)\x1b[2J", None))
    assert ("", "2,000 tokens/s on 2 x CPU (1 thread) when last measured: 100M in 13 h 53 min\n") in said()[1]
    keep_pace(tmp_path, preset, Pace(2000.0, "CPU", 0.437))
    assert ("", "2,000 tokens/s on CPU, 44% of its peak, when last measured: 100M in 13 h 53 min\n") in said()[1]
    keep_pace(tmp_path, preset, Pace(2000.0, "CPU", None, 20 * 10**9))
    more = needed.replace("more for steps", "20.0 GB for what a step reads at once") + ", too little without a GPU"
    assert more in " ".join(text.strip() for style, text in said()[1] if style == "class:warning")
    keep_pace(tmp_path, preset, Pace(2000.0, "2 x CPU (1 thread)", None))
    lines = "".join(text for _, text in details(Shelved(tmp_path / "a.json", preset, ""), PANE, None)).splitlines()
    at = lines.index("speed       2,000 tokens/s on 2 x CPU (1 thread)")
    assert lines[at + 1] == "            when last measured: 100M in 13 h 53 min"
    too_large = [text for style, text in said(hidden_size=8192, num_heads=64)[1] if style == "class:warning"]
    assert "too little without a GPU" in " ".join(text.strip() for text in too_large)
    assert ("", UNTIMED) in said(hidden_size=512)[1], "another model was not measured"
    measured = json.loads((tmp_path / "paces.json").read_text())["a"]
    for other in ("garbage", [], measured[:-1], measured[-1:], [*measured[:2], 2000.0], [*measured[:1], "10 layers", 5, *measured[2:]]):
        (tmp_path / "paces.json").write_text(json.dumps({"a": other}))
        assert ("", UNTIMED) in said()[1], other


def test_t_times_a_few_steps_and_the_page_has_it_from_then_on(small_folder):
    with Person(MAIN, small_folder, 200, 40) as person:
        person.waits_for("t times a few steps here")
        person.types("t")
        person.waits_for("timing a few steps of tiny")
        text = person.waits_for("q quit")
        assert "tiny: 100,000,000 tokens are to be read: about" in text and "are free" in text and "❯ tiny" in text
        assert "tokens/s on CPU (1 thread), " in text and "% of its peak, " in text and "100M in " in text
        person.types("\x1b[F", "t", "enter")
        assert person.ends() == 0
    assert json.loads((small_folder / "checkpoints" / "paces.json").read_text()).keys() == {"tiny"}
    assert not list((small_folder / "checkpoints").glob("*.pth")), "nothing was trained"


def test_timing_that_is_stopped_or_fails_goes_back_to_the_menu(small_folder):
    write_preset(small_folder, "01_huge", {**TINY, "name": "huge", "model": {"hidden_size": 65_536, "num_heads": 256}})
    with Person(MAIN, small_folder, 120, 40) as person:
        person.waits_for("t times a few steps here")
        person.types("t")
        person.waits_for("timing a few steps of tiny")
        person.types("ctrl-c")
        assert "when last measured" not in person.waits_for("q quit")
        person.goes_to("huge")
        person.types("t")
        person.waits_for("huge: .*parameters need")
        person.types("q")
        assert person.ends() == 0
        assert "Traceback" not in person.raw


def test_many_presets_scroll(folder):
    for number in range(10, 70):
        write_preset(folder, f"{number}_more", {**TINY, "name": f"preset number {number}"})
    with Person(MAIN, folder) as person:
        text = person.waits_for("q quit")
        assert "❯ best_general" in text and "preset number 69" not in text
        person.types(*["\x1b[6~"] * 9)
        assert "❯ " in person.text and "Quit" in person.text
        person.types("\x1b[H")
        assert "❯ best_general" in person.text


@pytest.mark.parametrize(("width", "height"), [(20, 10), (20, 24), (200, 50), (40, 8), (10, 3)])
def test_other_sizes(folder, width, height):
    with Person(MAIN, folder, width, height) as person:
        person.waits_for("❯ best")
        person.types("down")
        assert "❯ best_" in person.text
        person.types("q")
        assert person.ends() == 0


def test_it_follows_a_resize(folder):
    with Person(MAIN, folder) as person:
        person.waits_for("q quit")
        person.resizes(120, 30)
        person.look(1)
        assert any("❯ best_general" in line and "configs/00_best_general.json" in line for line in person.text.splitlines())
        person.resizes(20, 10)
        person.look(1)
        assert "❯ best_general" in person.text and "wikipedia" not in person.text


def test_chat_and_evaluation_wait_for_a_model(folder):
    with Person(MAIN, folder) as person:
        person.waits_for("q quit")
        person.goes_to("Chat")
        assert "There is no model yet" in person.text
        person.types("enter")
        assert person.child.isalive() and "❯ Chat" in person.text


def test_presets_are_viewed_and_edited(folder):
    write_preset(folder, "00_best_general", TINY)
    editor = folder / "editor.py"
    editor.write_text("import sys; path = sys.argv[1]; text = open(path).read(); open(path, 'w').write(text.replace('48', '47'))")
    with Person(MAIN, folder, EDITOR=f"{sys.executable} {editor}") as person:
        person.waits_for("q quit")
        person.goes_to("Presets")
        person.types("enter")
        person.waits_for("e edit")
        person.types("enter")
        person.waits_for('"num_kv_heads": null')
        person.types("\x1b[F")
        person.waits_for('"mlm": \\{')
        person.types("q", "e")
        assert "can't be divided among 2 heads" in person.waits_for("00_best_general.json: ")
        person.types("q")
        assert "✗" in person.waits_for("q quit")


@pytest.mark.parametrize(("editor", "said"), [("no-such-editor", "EDITOR"), ("", "There is no editor")])
def test_a_missing_editor_is_named(folder, editor, said):
    with Person(MAIN, folder, EDITOR=editor, PATH="/nowhere") as person:
        person.waits_for("q quit")
        person.goes_to("Presets")
        person.types("enter")
        person.waits_for("e edit")
        person.types("e")
        person.waits_for(said)


def test_no_presets_at_all(tmp_path, folder):
    for path in (folder / "configs").glob("*.json"):
        path.unlink()
    with Person(MAIN, folder) as person:
        person.waits_for("❯ Chat")
    done = subprocess.run(MAIN, cwd=folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1


def test_the_default_without_a_person(folder):
    """What ran last goes on, as long as it is there."""

    def default(last=""):
        return default_of(read_shelf(folder / "configs"), last).preset.name

    assert default() == default("gone") == "best_general" and default("rwkv") == "rwkv"
    write_preset(folder, "00_best_general", "{")
    assert default() == default("best_general") == "best_qa"


def test_enter_goes_on_with_the_preset_of_the_last_run(folder):
    checkpoints = folder / "checkpoints"
    checkpoints.mkdir()
    (checkpoints / "lm_current.pth").write_bytes(b"")
    told = {"runs": 1, "life_tokens": 5, "run_tokens": 5, "budget": 9, "vocab_size": 500, "born": "2026-11-20", "last_preset": "rwkv"}
    (checkpoints / "life.json").write_text(json.dumps(told))
    with Person(MAIN, folder) as person:
        person.waits_for("❯ rwkv")


def test_the_life_in_a_line(tmp_path):
    assert "No model yet" in life.read_life(tmp_path).in_words()
    (tmp_path / "lm_current.pth").write_bytes(b"")
    saved = life.read_life(tmp_path).saved_at
    for broken in ("", "{", "[]", '{"runs": "x"}', "null"):
        (tmp_path / "life.json").write_text(broken)
        assert life.read_life(tmp_path).in_words(saved + 120) == "A snapshot is there, saved 2 min ago."
    (tmp_path / "lm_current.pth").rename(tmp_path / "lm_prev.pth")
    assert life.read_life(tmp_path).saved_at == saved, "a run would go on from it"
    told = {"born": f"{datetime.now().year}-11-20T10:00:00+00:00", "runs": 2, "life_tokens": 112_400_000, "last_preset": "best_qa"}
    told |= {"run_tokens": 12_400_000, "budget": 100_000_000, "parameters": 5, "vocab_size": 600}
    (tmp_path / "life.json").write_text(json.dumps(told))
    line = life.read_life(tmp_path).in_words(saved + 5)
    assert line == "born 20 Nov, 112M tokens in 2 runs · best_qa at 12.4M of 100M · saved 5 s ago"
    (tmp_path / "life.json").write_text(json.dumps(told | {"born": "2019-01-02T10:00:00+00:00"}))
    assert life.read_life(tmp_path).in_words().startswith("born 2 Jan 2019, 112M")
    (tmp_path / "life.json").write_text(json.dumps(told | {"born": "long ago"}))
    assert life.read_life(tmp_path).in_words().startswith("112M")
