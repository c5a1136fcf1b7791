"""The model card: what a reader should know before using the model, all of it from the snapshot."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_sources.config import HubSource
from data_sources.special_tokens import GAPS as SENTINELS
from data_sources.special_tokens import MODES
from lm.preset import Preset, count_parameters, layer_plan, model_in_words
from lm.training.run import taught
from lm.training.snapshots import Snapshot

IMPORTS = "from transformers import AutoModelForCausalLM, AutoTokenizer"
CARD = """---
library_name: transformers
pipeline_tag: text-generation
{datasets}---

# {name}

{about}A language model made with Perennial. It reads on from run to run; this is how it stood after {tokens:,} tokens.

{facts}

## Open it

```python
{imports}

{opening}
tokens = model.generate(**tokenizer("It was", return_tensors="pt"))
print(tokenizer.batch_decode(tokens, skip_special_tokens=True)[0])
```

The code in this folder is the code that trained the model; `trust_remote_code=True` lets transformers run it. Text begins with
`{begin}`, which the tokenizer puts there. Rows of different length are padded at the left.

{gaps}## What it has read

{sources}

## How well it predicts

Bits per byte of text that was held out from training: lower is better, and the tokenizer makes no difference.

{measures}
"""

GAPS = """## Fill gaps

It was taught to fill gaps. Each is a token in the text, `{first}` and so on, and behind the text each stands once more, followed by what is missing;
`{mode}` comes before all. Typed out they would be read as text, so their ids are asked for.

```python
import torch

texts = ["It was", " of", " and so on."]  # a gap between each two
gaps = tokenizer.convert_tokens_to_ids([f"<|gap_{{number}}|>" for number in range(len(texts) - 1)])  # up to {most}
read = [tokenizer.convert_tokens_to_ids("{mode}"), tokenizer.bos_token_id]
for number, text in enumerate(texts):
    read += tokenizer(text, add_special_tokens=False).input_ids + gaps[number : number + 1]
filled = texts[0]
for gap, text in zip(gaps, texts[1:]):
    written = model.generate(torch.tensor([[*read, gap]]))[0, len(read) + 1 :].tolist()
    words = [token for token in written if token not in model.generation_config.eos_token_id]
    read += [gap, *words]
    filled += tokenizer.decode(words) + text
print(filled)
```

"""


def model_card(snapshot: Snapshot, place: str, begin: str) -> str:
    """README.md of the folder that will be called `place`. `begin`: the token that begins a text."""
    preset, life = snapshot.preset, snapshot.life
    about = f"{plain(preset.about)}\n\n" if preset.about else ""
    words = {"name": plain(preset.name) or "A language model", "about": about, "tokens": life["tokens"], "begin": begin}
    words |= {"imports": IMPORTS, "opening": "\n".join(opening_lines(place))}
    tables = {"facts": _facts(snapshot), "sources": _sources(life["sources"]), "measures": _measures(life.get("measured", {}))}
    return CARD.format(**words, **tables, datasets=_datasets(preset, life["sources"]), gaps=_gaps(taught(snapshot)))


def _gaps(by_denoiser: Mapping[str, int]) -> str:
    """How gaps are filled, in a mode that was taught; empty where none was."""
    mode = next((token for mode, token in MODES.items() if by_denoiser.get(mode)), None)
    return GAPS.format(mode=mode, first=SENTINELS[0], most=len(SENTINELS)) if mode else ""


def _facts(snapshot: Snapshot) -> str:
    preset, weights = snapshot.preset, snapshot.model_weights
    count = count_parameters(preset, len(weights["embedding.weight"]))
    rows = [
        ("preset", plain(preset.name)),
        ("parameters", f"{count.total:,}" + (f", of which a token uses {count.active:,}" if count.idle else "")),
        ("layers", model_in_words(preset)),
        *_memory(preset),
        *_average(preset),
        ("tokens in a row of training", f"{preset.model.seq_length:,}"),
        ("vocabulary", f"{len(weights['embedding.weight']):,}"),
        ("tokens read", f"{snapshot.life['tokens']:,}"),
        ("born", plain(str(snapshot.life["born"]))),
    ]
    return _table(("", ""), rows)


def _memory(preset: Preset) -> list[tuple[str, str]]:
    """What a model with cross-attention to neighbours does without the memory, which stays where it was trained."""
    if not any("retro" in layer for layer in layer_plan(preset)):
        return []
    return [("memory", "not in this folder: its layers that attend to neighbours are given none here, and then add nothing")]


def _average(preset: Preset) -> list[tuple[str, str]]:
    """What the weights are, where they are not those that training left."""
    half_life = preset.train.average_tokens
    return [("weights", f"an average over training, in which weights of {half_life:,} tokens ago count half")] if half_life else []


def _sources(tokens: Mapping[str, int]) -> str:
    total = sum(tokens.values())
    by_tokens = sorted(tokens.items(), key=lambda pair: -pair[1])
    return _table(("source", "tokens", "share"), [(plain(name), f"{count:,}", f"{count / total:.1%}") for name, count in by_tokens if count])


def _measures(measured: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """The newest measure of each source, of all of its held-out text where there is one."""
    newest = {**measured.get("brief", {}), **measured.get("full", {})}
    causal = {name: each for name, each in newest.items() if not each.get("pseudo")}  # a causal model is exported, whatever it was before
    rows = [(plain(name), f"{each['now']:.4f}", f"{each['tokens']:,}", f"{each['at']:,}") for name, each in causal.items()]
    return _table(("source", "bits per byte", "held-out tokens", "measured after tokens"), rows) if rows else "It has not been measured yet."


def _datasets(preset: Preset, read: Mapping[str, int]) -> str:
    """Metadata of the Hub: its data sets among the sources that were read."""
    names = sorted({source.dataset for source in preset.data.sources if isinstance(source, HubSource) and read.get(source.name)})
    return "".join(["datasets:\n", *(f'- "{name}"\n' for name in names)]) if names else ""


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows))


def plain(text: str) -> str:
    """`text` on one line, without control characters, none of it taken for Markdown or HTML."""
    shown = "".join(char if char.isprintable() else " " for char in text)
    return re.sub(r"([\\`*\[\]<>|~&])", r"\\\1", " ".join(shown.split()))


def folder_name(snapshot: Snapshot) -> str:
    """A name for any file system: what is readable of the preset's, and the tokens of the model's life."""
    readable = re.sub(r"[^A-Za-z0-9_]+", "_", snapshot.preset.name).strip("_")[:60] or "model"
    return f"{readable}-{snapshot.life['tokens']}"


def opening_lines(place: str | Path) -> list[str]:
    """The two lines of Python that open the folder at `place`, after IMPORTS. Without the word of trust even the tokenizer asks for it."""
    kinds = {"model": "AutoModelForCausalLM", "tokenizer": "AutoTokenizer"}
    return [f'{name} = {kind}.from_pretrained("{place}", trust_remote_code=True)' for name, kind in kinds.items()]
