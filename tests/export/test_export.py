"""What another program sees of an exported model: the same logits, losses and words, opened by transformers alone.

EXPORT_READER=/other/bin/python has another Python open the folders, with the versions of torch and transformers that it has.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from data_sources.tokenizer import tokenizer_from_json
from lm.export import export_snapshot
from lm.generation import generate
from lm.generation.writing import prompt_tokens
from lm.model import Context
from lm.ops.cross_entropy import linear_cross_entropy
from lm.training.snapshots import Snapshot
from tests.export.conftest import PROMPTS, VARIANTS, model_of

B, T, V = 2, 23, 400  # longer than a row of training
CUTS = [1, 5, 0, 9, 8]
PADDING = (7, 2)  # columns, by row
NAMES = [*VARIANTS, "trained"]
TEXTS = ["The plant", " typed <|endoftext|> and <|pad|>", "", "Über 東京"]
READER = Path(__file__).with_name("reader.py")


def questions() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(3, V, (B, T), generator=generator)
    mask = (torch.arange(T) >= torch.tensor(PADDING)[:, None]).long()
    labels = tokens.masked_fill(torch.rand(B, T, generator=generator) < 0.3, -100)
    about = {"tokens": tokens, "labels": labels, "mask": mask, "padded": tokens.where(mask.bool(), 1)}
    return about | {"cuts": CUTS, "prompts": PROMPTS, "texts": TEXTS, "vocabulary": V}


@pytest.fixture(scope="session")
def told() -> dict[str, Any]:
    return questions()


@pytest.fixture(scope="session")
def seen(snapshots: dict[str, Snapshot], told: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """By name, what a process saw that has the exported folders and transformers, and neither this repository nor a network."""
    place = tmp_path_factory.mktemp("elsewhere")
    folders = {name: str(export_snapshot(snapshots[name], place / "exports")) for name in NAMES}
    torch.save(dict.fromkeys(folders.values(), told), place / "asked.pt")
    (place / "reader.py").write_text(READER.read_text(encoding="utf-8"), encoding="utf-8")
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_ENDPOINT")}
    surroundings = {**kept, "HF_HOME": str(place / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [os.environ.get("EXPORT_READER", sys.executable), "reader.py", "asked.pt", "seen.pt"]
    done = subprocess.run(command, cwd=place, env=surroundings, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = torch.load(place / "seen.pt", weights_only=True)
    return {name: found[folder] for name, folder in folders.items()} | {"once": found["once"]}


def close(found: Tensor, meant: Tensor) -> None:
    torch.testing.assert_close(found, meant, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_logits_are_those_of_the_model_bit_for_bit(name: str, snapshots: dict[str, Snapshot], seen: dict[str, Any], told: dict[str, Any]) -> None:
    model, found = model_of(snapshots[name]), seen[name]
    whole = model(told["tokens"], model.initial_state(B)).logits  # as transformers reads, which keeps what a cache holds
    assert whole.std() > 0.1
    assert torch.equal(found["whole"], whole)
    assert (found["training"], found["dtype"]) == (False, "torch.float32")
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    state, pieces = model.initial_state(B), []
    for piece in told["tokens"].split(CUTS, 1):
        out = model(piece, state)
        state = out.state
        pieces.append(out.logits)
    assert torch.equal(found["pieces"], torch.cat(pieces, 1))
    close(found["pieces"], whole)
    close(found["last"], whole[:, -1:])


@pytest.mark.parametrize("name", NAMES)
def test_padding_changes_nothing(name: str, snapshots: dict[str, Snapshot], seen: dict[str, Any], told: dict[str, Any]) -> None:
    """Padded rows equal the rows alone, at either side, also when the padding came in an earlier piece. Another kernel sums: 1e-5."""
    model = model_of(snapshots[name])
    for row, missing in enumerate(PADDING):
        alone = model(told["tokens"][row : row + 1, missing:]).logits[0]
        for how in ("padded", "padded pieces"):
            close(seen[name][how][row, missing:], alone)
        reversed_alone = model(told["tokens"][row : row + 1, missing:].flip(1)).logits[0]
        close(seen[name]["padded right"][row, : T - missing], reversed_alone)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_and_its_gradient_are_ours(name: str, snapshots: dict[str, Snapshot], seen: dict[str, Any], told: dict[str, Any]) -> None:
    """With the units' own losses, weighted as in training, over the tokens that are scored."""
    model, targets, weights = model_of(snapshots[name]), F.pad(told["labels"][:, 1:], (0, 1), value=-100), snapshots[name].preset.loss_weights
    out, count = model(told["tokens"], context=Context(is_text=targets >= 0)), (targets >= 0).sum()
    total, _ = linear_cross_entropy(out.hidden.flatten(0, 1), model.readout, targets.flatten())
    loss = total / count + sum(weights[key] * value for key, value in out.losses.items())
    loss.backward()
    close(seen[name]["loss"], loss.detach())
    close(seen[name]["loss by count"], total.detach() / 7)
    close(seen[name]["loss of a part"], loss.detach() * count / 99)
    close(seen[name]["gradient"], model.embedding.weight.grad)


@pytest.mark.parametrize("name", NAMES)
def test_it_writes_what_this_program_writes(name: str, snapshots: dict[str, Snapshot], seen: dict[str, Any]) -> None:
    snapshot, found = snapshots[name], seen[name]
    model, tokenizer = model_of(snapshot), tokenizer_from_json(snapshot.tokenizer)
    specials, ended = set(tokenizer.all_special_ids), []
    for number, prompt in enumerate(PROMPTS):
        writing = generate(model, tokenizer, prompt, snapshot.preset.generation)
        "".join(writing)
        ended.append(writing.finished_by)
        alone, together = found["alone"][number], found["together"][number].tolist()
        assert alone[: len(writing.read)] == list(writing.read)
        for written in (alone[len(writing.read) :], together):
            assert written[: len(writing.tokens)] == list(writing.tokens)
            rest = written[len(writing.tokens) :]
            assert set(rest) <= specials and bool(rest) >= (writing.finished_by == "end")
    assert name != "grouped" or "end" in ended, "no text ended: the test can't tell whether a penalty fell on the end"


@pytest.mark.parametrize("name", NAMES)
def test_beams_and_caches_change_nothing(name: str, seen: dict[str, Any]) -> None:
    found = seen[name]
    assert torch.equal(*found["beams"]) and torch.equal(*found["on"])
    assert len(found["drawn"]) == 2 * len(PROMPTS)


@pytest.mark.parametrize("name", NAMES)
def test_saved_again_it_is_the_same_and_in_bfloat16_too(name: str, snapshots: dict[str, Snapshot], seen: dict[str, Any], told: dict[str, Any]) -> None:
    found = seen[name]
    assert torch.equal(found["again"], found["whole"])
    half = model_of(snapshots[name]).bfloat16()(told["tokens"]).logits
    assert half.dtype == torch.bfloat16 and torch.equal(found["half"], half)


@pytest.mark.parametrize("name", NAMES)
def test_text_becomes_the_tokens_of_training(name: str, snapshots: dict[str, Snapshot], seen: dict[str, Any]) -> None:
    tokenizer = tokenizer_from_json(snapshots[name].tokenizer)
    meant = [[tokenizer.bos_token_id, *prompt_tokens(tokenizer, text)] for text in TEXTS]
    assert seen[name]["ids"] == meant == seen[name]["ids again"]


REFUSED = {
    "hole": "text stands on both sides of padding",
    "right": "pad at the left to generate",
    "shape": "attention_mask is (2, 22); it takes a row of 23",
    "rows": "past_key_values holds 1 rows, input_ids 2",
    "hidden padding": "give the mask of all tokens read so far",
    "assisted": "not supported with stateful models",
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_can_not_be_done_is_one_line(what: str, seen: dict[str, Any]) -> None:
    line = seen["rope"]["refusals"][what]
    assert REFUSED[what] in line and "\n" not in line


def test_the_cards_lines_a_pipeline_a_new_model_and_more_words(seen: dict[str, Any]) -> None:
    once = seen["once"]
    assert once["card"].startswith("It was")
    assert once["pipeline"][0].startswith(PROMPTS[0]) and len(once["pipeline"][0]) > len(PROMPTS[0])
    assert once["first outputs"] and set(once["first outputs"]) == {0.0}, "a new layer is the identity"
    assert once["resized"] == [V + 3, V + 3]
    assert {"modeling_perennial.py", "model.py", "units_attention.py", "generation_config.json"} <= set(once["files"])
