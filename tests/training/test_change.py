"""What another preset would make of a model, told without building it; and a new life that takes nothing from the old one."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lm.preset import Preset
from lm.training import train
from lm.training.change import Part, _in_words, begin_new_life, change_of
from lm.training.growth import fit
from lm.training.headers import SnapshotError, read_header
from lm.training.learner import Learner
from lm.training.snapshots import Snapshots
from tests.training.test_sources import STEP, of, trained

Tiny = Callable[..., Preset]
MODEL = {"hidden_size": 32, "num_layers": 2, "num_heads": 2, "seq_length": 64}


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> Path:
    """A folder with a tiny model in it."""
    folder = tmp_path_factory.mktemp("life") / "c"
    preset = Preset.model_validate(
        {
            "name": "tiny",
            "model": MODEL,
            "train": {"per_gpu_batch_size": 4},
            "data": {"sources": [{"type": "files", "name": "reference", "path": str(corpus), "repeat": True}], "vocab_size": 500},
        }
    )
    train(preset, folder, 2 * STEP)
    return folder


def newest(folder: Path) -> Any:
    return read_header(folder / "lm_current.pth")


def test_the_same_model_is_not_asked_about(lived: Path, tiny: Tiny) -> None:
    for sections in ({}, {"train": {"learning_rate": 1.0}}, {"generation": {"top_p": 0.5}}, {"model": {"seq_length": 128}}):
        assert change_of(newest(lived), tiny(**sections)) is None, sections


def test_torch_is_not_imported_to_find_that_out(lived: Path, tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "p.json").write_text(tiny().model_dump_json())
    program = (
        "import sys; from lm.preset import load_preset; from lm.training.change import change_of; from lm.training.headers import read_header; "
        "from pathlib import Path; print(change_of(read_header(Path(sys.argv[1])), load_preset(sys.argv[2])), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program, lived / "lm_current.pth", tmp_path / "p.json"], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["None", "False"]


def test_the_table_is_what_training_does(lived: Path, tiny: Tiny) -> None:
    """The fates told beforehand are those of the tensors when it is done."""
    other = tiny(model={"num_layers": 4})
    change = change_of(newest(lived), other)
    assert change is not None and change.tokenizer == ""
    told = {part.fate: part for part in change.parts}
    snapshot = Snapshots(lived).newest()
    assert snapshot is not None
    from lm.model import build_model

    vocab = snapshot.weights["model.embedding.weight"].shape[0]
    learner = Learner(build_model(other, vocab))
    how = fit(learner.model, learner.state_dict(), snapshot.preset, snapshot.weights)
    assert [told[fate].tensors for fate in ("kept", "grown", "new", "left behind")] == [len(how.kept), 0, len(how.new), 0]
    assert sum(part.parameters for part in change.parts) == sum(tensor.numel() for tensor in learner.state_dict().values())
    assert told["new"].names == "layers 2 to 3" and told["kept"].names.startswith("layers 0 to 1, embedding")


GROWN = {"num_layers": 3, "seq_length": 96, "position": "learned"}


@pytest.mark.parametrize("model", [GROWN, GROWN | {"ffn_size": 40}], ids=["grown", "of another width, too"])
def test_a_run_does_what_the_table_told(tiny: Tiny, tmp_path: Path, model: dict[str, Any]) -> None:
    """Told before `train` is called; then its event, the archive, and the tensors of the snapshot after steps that change next to nothing."""
    still = {"per_gpu_batch_size": 4, "snapshot_every_minutes": 1000, "learning_rate": 1e-12, "weight_decay": 0.0}
    trained(tiny(model=MODEL | {"position": "learned"}, train=still), tmp_path, 2)
    old, before = Snapshots(tmp_path).read("current"), newest(tmp_path)
    other = tiny(model=MODEL | model, train=still)
    change = change_of(before, other)
    assert change is not None
    told = {part.fate: part for part in change.parts}
    events = trained(other, tmp_path, 3)
    (fit_event,) = [event for event in events if event["event"] == "fit"]
    names = {"kept": fit_event["kept"], "grown": list(fit_event["grown"]), "new": fit_event["new"], "left behind": fit_event["left"]}
    now = Snapshots(tmp_path).read("current").weights
    for fate, found in names.items():
        sizes = (old if fate == "left behind" else Snapshots(tmp_path).read("current")).weights
        assert (told[fate].tensors, told[fate].parameters) == (len(found), sum(sizes[name].numel() for name in found)), fate
    assert {*names["kept"], *names["grown"], *names["new"]} == now.keys() and {*names["kept"], *names["grown"], *names["left behind"]} == old.weights.keys()
    assert told["grown"].names == "positions from 64 x 32 to 96 x 32" and told["grown"].names in of(events, "notice", "text")[0]
    assert told["new"].names == ("layers 0 to 2" if "ffn_size" in model else "layer 2")
    for name in [*names["kept"], *names["grown"]]:
        torch.testing.assert_close(now[name][: len(old.weights[name])], old.weights[name], rtol=0, atol=1e-9)
    (kept,) = (tmp_path / "archive").glob("before-*.pth")
    assert read_header(kept).identity == before.identity
    assert change_of(newest(tmp_path), other) is None, "and then there is nothing to ask"


def test_another_model_of_the_same_tensors_is_told_archived_and_gone_on_with(tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny(), tmp_path, 2)
    before, other = newest(tmp_path), tiny(model={"rope_theta": 500.0}, longformer={"enabled": True, "layers": [1], "window": 16})
    change = change_of(before, other)
    assert change is not None and [part.tensors for part in change.parts[1:]] == [0, 0, 0]
    assert change.switches[0] == "model.rope_theta was 10000.0 and is 500.0" and "longformer.window was 256 and is 16" in change.switches
    events = trained(other, tmp_path, 3)
    (fit_event,) = [event for event in events if event["event"] == "fit"]
    assert (fit_event["new"], fit_event["left"], fit_event["otherwise"]) == ([], [], True)
    assert "computed with in another way; as it was it stays in" in of(events, "notice", "text")[0]
    (resume,) = [event for event in events if event["event"] == "resume"]
    assert not resume["exact"] and any(line.startswith("the loss of the fixed row was") for line in resume["differs"])
    (kept,) = (tmp_path / "archive").glob("before-*.pth")
    assert read_header(kept).identity == before.identity
    assert change_of(newest(tmp_path), other) is None, "and then there is nothing to ask"


def test_a_model_that_is_to_read_both_ways_keeps_what_it_learned(lived: Path, tiny: Tiny) -> None:
    change = change_of(newest(lived), tiny(train={"objective": "mlm"}, model={"bidirectional": "own"}))
    assert change is not None
    kept, grown, new, left = change.parts
    assert (left.tensors, grown.names.startswith("embedding from"), new.names) == (0, True, "layers 0 to 1") and kept.tensors > new.tensors
    assert "model.bidirectional was 'off' and is 'own'" in change.switches


def test_what_can_not_be_kept_is_told(lived: Path, tiny: Tiny) -> None:
    change = change_of(newest(lived), tiny(model={"hidden_size": 48, "num_layers": 1}, data={"vocab_size": 700}))
    assert change is not None and [part.tensors for part in change.parts][:2] == [0, 0] and change.parts[3].tensors > change.parts[2].tensors > 0
    assert change.tokenizer == "the preset asks for a tokenizer of 700 entries; the model was born with a tokenizer of 500 entries and keeps it for life"


def test_another_tokenizer_alone_is_asked_about(lived: Path, tiny: Tiny) -> None:
    change = change_of(newest(lived), tiny(data={"tokenizer": "gpt2"}))
    assert change is not None and change.parts == [] and change.tokenizer.startswith("the preset asks for the tokenizer gpt2;")


def test_born_with_means_born_with(tiny: Tiny, tmp_path: Path) -> None:
    trained(tiny(), tmp_path, 2)
    other = tiny(data={"vocab_size": 600})
    events = trained(other, tmp_path, 3)
    (told,) = [text for text in of(events, "notice", "text") if "born" in text]
    assert change_of(newest(tmp_path), tiny()) is None
    assert (change := change_of(newest(tmp_path), other)) is not None and change.tokenizer == told


def test_an_encoder_is_told_as_one_part() -> None:
    names = ["model.layers.1.1.norm.weight", *(f"model.neighbour_encoder.{part}.weight" for part in ("narrow", "blocks.0.down", "blocks.1.down"))]
    assert _in_words([*names, "model.norm.weight"]) == "layer 1, neighbour_encoder, norm"


def test_layers_in_words() -> None:
    assert _in_words([f"model.layers.{n}.0.norm.weight" for n in (0, 1, 2, 4, 7, 8)] + ["model.norm.weight"]) == "layers 0 to 2 and 4 and 7 to 8, norm"
    assert _in_words(["model.layers.3.0.x"]) == "layer 3" and _in_words([]) == "" and Part("new", 0, 0, "").names == ""


def test_a_new_life_takes_nothing_and_loses_nothing(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    trained(tiny(), folder, 3)
    trained(tiny(), folder, 4)
    old = Snapshots(folder).newest()
    before = {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.suffix in (".pth", ".jsonl", ".json", ".parquet")
    }
    home = begin_new_life(folder)
    assert home.parent == folder.parent and home.name.startswith("c-") and not folder.exists()
    assert all((home / path).read_bytes() == content for path, content in before.items())
    events = trained(tiny(model={"hidden_size": 48, "num_heads": 3}), folder, 3)
    assert of(events, "resume", "tokens") == [] and of(events, "step", "life_tokens")[-1] == 3 * STEP
    again = Snapshots(home).newest()
    assert old is not None and again is not None and again.life == old.life, "and it can be gone on with"
    assert begin_new_life(folder).name == f"{home.name}-2"
    home.rename(folder)
    assert of(trained(tiny(), folder, 5), "resume", "from") == ["lm_current.pth"], "with its name it goes on"


def test_not_while_a_run_goes_on(tiny: Tiny, tmp_path: Path) -> None:
    folder = tmp_path / "c"
    trained(tiny(), folder, 2)
    program = "import sys; from pathlib import Path; from lm.training.snapshots import Snapshots; "
    program += "lock = Snapshots(Path(sys.argv[1])).lock(); print(1, flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", program, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None and other.stdout.readline()
        with pytest.raises(SnapshotError, match="another"):
            begin_new_life(folder)
        other.communicate("\n")
    assert (folder / "lm_current.pth").exists()
