"""The whole program as a person uses it: train, stop, go on, talk, leave; alone, with two processes, and without a terminal."""

import json
import signal
import subprocess
import time

import pytest

from tests.app.conftest import TINY, write_preset
from tests.app.person import MAIN, ROOT, TORCHRUN, Person, environment


def losses(folder):
    lines = (folder / "checkpoints" / "run.jsonl").read_text().splitlines() if (folder / "checkpoints" / "run.jsonl").exists() else []
    return [event["loss"] for event in map(json.loads, lines) if event["event"] == "step"]


def has_fallen(folder, by=1.0):
    seen = losses(folder)
    return len(seen) > 30 and sum(seen[-5:]) / 5 < seen[0] - by


def events(folder, kind):
    lines = (folder / "checkpoints" / "run.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.timeout(150)
def test_train_stop_go_on_talk_and_leave(small_folder):
    with Person(MAIN, small_folder, 100, 30) as person:
        person.waits_for("q quit")
        person.types("enter")
        person.waits_for("● training", 60)
        person.types("typed while it trains\r")
        person.waits_for(lambda text: has_fallen(small_folder) and all(word in text for word in ("texts", "reading", "after")), 60)
        assert "typed while" not in person.raw
        person.types("ctrl-c")
        text = person.waits_for("(?s)Stopped and saved at.*q quit", 20)
        assert "tokens in 1 run" in text
        stopped_at = events(small_folder, "step")[-1]["tokens"]

        person.types("enter")
        person.waits_for("goes on at", 30)
        person.waits_for("● training", 30)
        person.resizes(60, 20)
        person.waits_for(lambda text: events(small_folder, "step")[-1]["tokens"] > stopped_at, 30)
        assert events(small_folder, "resume")[-1]["tokens"] == stopped_at
        in_a_second_window(small_folder)
        person.waits_for("● training", 30)  # beside evaluations

        person.types("ctrl-c")
        person.waits_for("(?s)Stopped and saved at.*q quit", 20)
        person.types("q")
        assert person.ends() == 0
        assert "Traceback" not in person.raw


def in_a_second_window(small_folder):
    """While a run uses the folder: no other run, and chat, what it has read and evaluation from the last snapshot."""
    with Person(MAIN, small_folder, 100, 30) as person:
        person.waits_for("q quit")
        person.types("enter")
        assert "checkpoints: " in person.waits_for("(?s)Halted: .*another run is using this folder.*q quit", 30)

        person.types("down", "enter")
        person.waits_for("›", 30)
        for line, answer in [
            ("/settings temperature 0", "temperature +0"),
            ("/snapshot prev", "prev snapshot|no such snapshot"),
            ("/nonsense", "is no command"),
        ]:
            person.types(line, "enter")
            person.waits_for(answer, 20)
        before = person.text
        person.types("import os", "enter")
        person.waits_for(lambda text: text != before and "it go on)" in text, 20)
        person.types("ctrl-d")
        person.waits_for("q quit", 10)

        person.types("down", "down", "down", "enter")
        assert "texts" in person.waits_for("as of the last snapshot", 10)
        person.types("q")
        person.waits_for("q quit", 10)
        person.types("down", "down", "enter")
        if "bits per byte" in person.waits_for("bits per byte|No text is held out yet", 30):
            person.types("q")
        person.waits_for("q quit", 10)
        person.types("q")
        assert person.ends() == 0
        assert "Traceback" not in person.raw


@pytest.mark.slow
@pytest.mark.timeout(150)
def test_two_processes(small_folder):
    with Person(TORCHRUN, small_folder, 100, 30) as person:
        person.waits_for("q quit", 40)
        person.types("enter")
        person.waits_for("● training", 60)
        person.waits_for(lambda text: has_fallen(small_folder, 0.5), 60)
        assert "2 x CPU" in person.text
        person.types("ctrl-c")
        started = time.monotonic()
        assert person.ends(30) == 0
        assert time.monotonic() - started < 20
        assert "Stopped and saved at" in person.raw and "Traceback" not in person.raw
        assert (small_folder / "checkpoints" / "lm_current.pth").exists()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_two_processes_that_are_asked_for_nothing(small_folder):
    with Person(TORCHRUN, small_folder) as person:
        person.waits_for("q quit", 40)
        person.types("q")
        assert person.ends(30) == 0


@pytest.mark.timeout(100)
def test_without_a_terminal_and_a_second_interrupt(small_folder):
    child = subprocess.Popen(MAIN, cwd=small_folder, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    said = []
    for line in child.stdout:
        said.append(line)
        if "of 100M tokens" in line:
            break
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=30)
    assert child.returncode == 0 and err == ""
    assert 'the preset "tiny"' in said[0] and "Stopped and saved" in out and "\x1b" not in "".join(said) + out

    child = subprocess.Popen(MAIN, cwd=small_folder, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)
    child.stdout.readline()
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    time.sleep(0.3)
    child.send_signal(signal.SIGINT)
    assert child.wait(timeout=5) == 130


@pytest.mark.timeout(60)
def test_what_halts_a_run_is_one_line(small_folder):
    write_preset(small_folder, "00_best_general", {**TINY, "data": {"sources": [{"type": "files", "path": "./nowhere"}]}})
    done = subprocess.run(MAIN, cwd=small_folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1 and "Halted: " in done.stdout.splitlines()[-1] and "nowhere" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    with Person(MAIN, small_folder, 100, 30) as person:
        person.waits_for("q quit")
        person.types("enter")
        assert "nowhere" in person.waits_for("Halted: ", 30)
        person.types("q")
        assert person.ends() == 0


@pytest.mark.timeout(60)
def test_a_second_ctrl_c_leaves_at_once_and_puts_the_terminal_back(small_folder):
    with Person(MAIN, small_folder, 100, 30) as person:
        person.waits_for("q quit")
        person.types("enter")
        person.waits_for(r"step\s+[1-9]", 30)
        person.child.send("\x03")
        time.sleep(0.03)  # as one signal they might be seen as one; much later the first has done its work
        person.child.send("\x03")
        assert person.ends(5) == 130
        assert person.raw.rstrip().endswith("\x1b[?25h\x1b[0mLeft at once, without saving: training goes on from the last snapshot.")


@pytest.mark.timeout(60)
def test_a_folder_that_is_a_file_is_one_line(small_folder):
    (small_folder / "checkpoints").write_text("another program's")
    done = subprocess.run(MAIN, cwd=small_folder, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 1 and "checkpoints" in done.stdout.splitlines()[-1].partition("Halted: ")[2] and "Traceback" not in done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_terminal_that_is_closed_saves_the_run(small_folder):
    with Person(MAIN, small_folder, 100, 30) as person:
        person.waits_for("q quit")
        person.types("enter")
        person.waits_for(lambda text: len(losses(small_folder)) > 2, 60)
        assert not (small_folder / "checkpoints" / "lm_current.pth").exists()
        person.hangs_up(20)
        assert (small_folder / "checkpoints" / "lm_current.pth").exists() and events(small_folder, "end")


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_reader_that_goes_away_ends_the_run_in_good_order(small_folder):
    child = subprocess.Popen(MAIN, cwd=small_folder, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while " tokens/s" not in child.stdout.readline():  # until it trains: before that there is nothing to save
        pass
    child.stdout.close()
    assert child.wait(timeout=40) == 0 and child.stderr.read() == ""
    assert (small_folder / "checkpoints" / "lm_current.pth").exists()


@pytest.mark.timeout(60)
def test_a_terminal_that_can_not_draw_gets_lines(small_folder):
    with Person(MAIN, small_folder, 100, 30, TERM="dumb") as person:
        person.waits_for("nobody to ask: training the preset", 30)
        person.types("ctrl-c", "ctrl-c")
        assert person.ends(20) == 130 and "\x1b" not in person.raw


def test_a_package_that_is_missing_is_named_wherever_it_is_met(small_folder):
    (small_folder / "sitecustomize.py").write_text("import sys; sys.modules['rich'] = None")
    with Person(MAIN, small_folder, PYTHONPATH=f"{small_folder}:{ROOT}") as person:
        person.waits_for("q quit")
        person.types("enter")
        person.waits_for("The package rich is not installed here: pip install -r requirements.txt")
        assert person.ends() == 1
        assert "Traceback" not in person.raw
