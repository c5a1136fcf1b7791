"""What a preset may say about data: the `data` section and one type for each kind of source.

Only types, defaults, bounds and one line of meaning stand here, so that the menu can check a preset without loading a reader.
"""

import string
from pathlib import PurePath
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from data_sources.catalogue import BUILT_IN, described


class Config(BaseModel):
    """A section of a preset: strict, closed to unknown keys, and unchangeable once read."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Source(Config):
    """What every source may say."""

    name: str = Field("", max_length=60, description="Name on the screen and in source_weights; made from the rest when empty.")
    repeat: bool = Field(False, description="Go round again when the source ends; otherwise it is read once.")


class TableSource(Source):
    """A source with named columns: either one column of prose, or several put together by a format."""

    text_field: str = Field("text", min_length=1, description="Column that holds the text.")
    fields: Annotated[tuple[str, ...], Field(strict=False, min_length=1)] | None = Field(
        None, description='Columns that `format` puts together, such as ["question", "answer"].'
    )
    format: str | None = Field(None, min_length=1, description='Text made of each row, such as "Q: {question}\\nA: {answer}". Plain {names} only.')
    title_field: str | None = Field(
        "title", min_length=1, description="Column with the title that a memory shows its passages under, in files that have it; null for none."
    )
    loss_on: Literal["all", "answer"] = Field(
        "all", description="What is learned of each row: all of its text, or what the last of `fields` says, wherever it stands, and that the text ends."
    )

    input_field: str | None = Field(None, min_length=1, description="Column that is read and not learned, for targets of a source's own; with target_field.")
    target_field: str | None = Field(
        None, min_length=1, description="Column that is learned, after input_field: on a line of its own, or where `format` puts it. As loss_on answer."
    )

    @model_validator(mode="before")
    @classmethod
    def _target_is_the_answer(cls, raw: Any) -> Any:
        """input_field and target_field say in two words what fields and loss_on say for any number of columns."""
        if not isinstance(raw, dict) or raw.get("input_field") is None or raw.get("target_field") is None:
            return raw
        both = [raw["input_field"], raw["target_field"]]
        if raw.get("fields") is not None and list(raw["fields"]) != both:
            raise ValueError(f"fields and input_field both say which columns are read; with input_field and target_field leave fields out, or as {both}")
        named = all(isinstance(name, str) and name.isidentifier() for name in both)
        lines = {"format": f"{{{both[0]}}}\n{{{both[1]}}}"} if raw.get("format") is None and named else {}  # so that chat asks in the same form
        return {**raw, "fields": both, "loss_on": "answer", **lines}

    @model_validator(mode="after")
    def _targets_have_inputs(self) -> "TableSource":
        if (self.input_field is None) != (self.target_field is None):
            there, lacking = ("input_field", "target_field") if self.target_field is None else ("target_field", "input_field")
            raise ValueError(f"{there} needs {lacking}: what is read, and what is learned of it")
        if self.input_field is not None and self.input_field == self.target_field:
            raise ValueError(f'input_field and target_field are both "{self.input_field}": what is read would be what is learned')
        named = format_fields(self.format) if self.format is not None else [self.input_field, self.target_field]
        if missing := [name for name in (self.input_field, self.target_field) if name is not None and name not in named]:
            raise ValueError(f"format uses no {{{missing[0]}}}; input_field and target_field must both stand in it")
        return self

    @model_validator(mode="after")
    def _format_names_fields(self) -> "TableSource":
        if self.format is None:
            return self
        names = format_fields(self.format)
        if not names:
            raise ValueError("format names no field; write it like 'Q: {question}\\nA: {answer}'")
        missing = [name for name in names if self.fields is not None and name not in self.fields]
        if missing:
            raise ValueError(f"format uses {{{missing[0]}}}, which is not in fields {list(self.fields or ())}")
        return self

    @model_validator(mode="after")
    def _answer_follows_something(self) -> "TableSource":
        if self.loss_on == "answer" and len(self.columns) < 2:
            raise ValueError('loss_on "answer" needs two fields or more; give "fields" and a "format" such as "Q: {question}\\nA: {answer}"')
        if self.loss_on == "answer" and self.answer not in self.columns:
            raise ValueError(f'loss_on "answer" learns {{{self.answer}}}, the last of fields, and format does not use it')
        return self

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns that are read from each row."""
        if self.format is not None:
            return tuple(dict.fromkeys(format_fields(self.format)))
        return self.fields or (self.text_field,)

    @property
    def answer(self) -> str:
        """What `loss_on` calls the answer: the last of `fields`, and without them the last that the format names."""
        return (self.fields or format_fields(self.format or "") or [self.text_field])[-1]

    @property
    def is_prose(self) -> bool:
        """Whether `min_text_length` applies: a short text is noise, a short question with its answer is not."""
        return self.fields is None and self.format is None


HUB_NAMES = [name for name in BUILT_IN if described(name)["type"] == "hf"]


class NamedSource(TableSource):
    """A built-in source with switches of its own, such as {"type": "wikipedia", "repeat": true}. Read as the HubSource it stands for."""

    type: Literal[tuple(HUB_NAMES)]
    split: str = Field("train", min_length=1, description="Split to read.")


class HubSource(TableSource):
    """A data set of the Hugging Face Hub, streamed shard by shard."""

    type: Literal["hf"]
    dataset: str = Field(pattern=r"^[\w.-]+(/[\w.-]+)?$", description="Repository on the Hub: owner/name.")
    config: str | None = Field(None, description="Configuration of the data set, where it has several.")
    split: str = Field("train", min_length=1, description="Split to read.")


class FilesSource(TableSource):
    """A file, or a folder with all below it: txt, md, jsonl, json, parquet, each of the text kinds also as gz and zst."""

    type: Literal["files"]
    path: str = Field(min_length=1, description="File or folder, relative to the folder of main.py.")


class PdfSource(Source):
    """A PDF, or a folder with all PDFs below it, cut into chunks of three to five thousand characters."""

    type: Literal["pdf"]
    path: str = Field(min_length=1, description="File or folder, relative to the folder of main.py.")


class InstalledDocsSource(Source):
    """The documentation inside the Python packages of this machine: docstrings, the language reference, descriptions."""

    type: Literal["installed_docs"]


PAST = "past text"


class PastSource(Source):
    """Text that earlier runs have read. No preset names it: training adds it to the sources of a run."""

    type: Literal["past"] = "past"
    name: Literal["past text"] = PAST
    repeat: Literal[True] = True
    path: str = Field(description="File with the sample that was kept.")
    sources: tuple[str, ...] = Field(description="Sources whose text is read again.")
    share: float = Field(gt=0, lt=1, description="Share of the run's tokens.")
    document_tokens: int = Field(500, ge=1, description="About how long its documents are; what a lane expects of its first.")


def _spelled_out(entry: Any) -> Any:
    """A plain name, alone or as the type, becomes the entry it stands for; a source without a name gets one."""
    if isinstance(entry, str):
        if entry not in BUILT_IN:
            raise PydanticCustomError("unknown_choice", "no such source", {"choices": list(BUILT_IN)})
        return described(entry)
    if isinstance(entry, dict) and entry.get("type") in HUB_NAMES:
        return {**described(entry["type"]), **entry, "type": "hf"}
    if isinstance(entry, dict) and not entry.get("name"):
        origin = entry.get("dataset") or entry.get("path") or entry.get("type")
        if isinstance(origin, str):
            return {**entry, "name": PurePath(origin).name or origin}
    return entry


AnySource = Annotated[
    Annotated[HubSource | FilesSource | PdfSource | InstalledDocsSource, Field(discriminator="type")],
    BeforeValidator(_spelled_out, json_schema_input_type=Literal[tuple(BUILT_IN)] | NamedSource | HubSource | FilesSource | PdfSource | InstalledDocsSource),
]


Weight = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]


class CacheConfig(Config):
    """A folder that keeps what was fetched from the Hub."""

    path: str = Field("./cache", min_length=1, description="Folder, relative to the folder of main.py. Several runs may share one.")
    gigabytes: float = Field(10.0, gt=0, le=1_000_000, allow_inf_nan=False, description="Size past which what was not used for longest is removed.")


def _switched(cache: Any) -> Any:
    """true is the cache as it is by default, false is none."""
    return ({} if cache else None) if isinstance(cache, bool) else cache


class DataConfig(Config):
    """Where the text comes from, how sources are mixed, and how text becomes tokens."""

    sources: tuple[AnySource, ...] = Field(
        strict=False, min_length=1, max_length=64, description="What is read: names of built-in sources, or objects with a type."
    )
    mix_strategy: Literal["round_robin", "sequential", "weighted"] = Field(
        "round_robin",
        description="round_robin: a document of each in turn; sequential: one source after the other; weighted: shares of tokens as source_weights say.",
    )
    source_weights: dict[str, Weight] | Annotated[tuple[Weight, ...], Field(strict=False)] | None = Field(
        None, description="For weighted: one number for each source, in their order or by name. They need not add up to one."
    )
    min_text_length: int = Field(
        50, ge=0, le=1_000_000, description="Prose shorter than this many characters is passed over; a question with its answer never is."
    )
    tokenizer: str = Field(
        "bpe", min_length=1, description='"bpe": a byte-level BPE trained once on these sources; else the name or folder of a published tokenizer.'
    )
    vocab_size: int = Field(16_384, ge=300, le=1_000_000, description="Entries of the tokenizer that is trained.")
    packing: Literal["documents", "pad"] = Field(
        "documents", description="documents: rows filled to the end, boundaries kept; pad: one document a row, padded."
    )
    cache: Annotated[CacheConfig | None, BeforeValidator(_switched, json_schema_input_type=bool | CacheConfig | None)] = Field(
        None,
        description="Keep what is fetched from the Hub on disk, and go on from there where it can't be reached: true, or an object with a path and a size.",
    )
    shuffle: bool = Field(True, description="Read shards, row groups and rows in a seeded random order.")

    @model_validator(mode="after")
    def _names_and_weights(self) -> "DataConfig":
        names = [source.name for source in self.sources]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f'two sources are called "{twice}"; give one of them another "name"')
        if PAST in names:
            raise ValueError(f'"{PAST}" is what is read again of earlier runs; give the source another "name"')
        if self.source_weights is None:
            if self.mix_strategy == "weighted":
                raise ValueError('mix_strategy "weighted" needs source_weights')
        elif isinstance(self.source_weights, dict):
            if set(self.source_weights) != set(names):
                raise ValueError(f"source_weights names {sorted(self.source_weights)}, the sources are {names}")
        elif len(self.source_weights) != len(names):
            raise ValueError(f"source_weights has {len(self.source_weights)} numbers for {len(names)} sources")
        return self

    @property
    def weights(self) -> tuple[float, ...]:
        """One weight for each source, in their order, adding up to one. Equal where none are given."""
        present = self.sources[:-1] if self.past else self.sources
        if isinstance(self.source_weights, dict):
            raw = [self.source_weights[source.name] for source in present]
        else:
            raw = list(self.source_weights or [1.0] * len(present))
        share = self.past.share if self.past else 0.0
        return tuple(weight / sum(raw) * (1 - share) for weight in raw) + ((share,) if self.past else ())

    @property
    def past(self) -> PastSource | None:
        """What is read again of earlier runs; the last of the sources, where it is one of them."""
        return last if isinstance(last := self.sources[-1], PastSource) else None

    def with_past(self, past: PastSource) -> "DataConfig":
        """The same with a share of what was read before, whatever the mix of the others is."""
        return self.model_copy(update={"sources": (*self.sources, past)})


def format_fields(template: str) -> list[str]:
    """Field names of a format, in order. ValueError for anything but plain {names}: attributes could reach into objects."""
    try:
        pieces = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"format can't be read: {error}") from None
    names = []
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        if not name.isidentifier() or spec or conversion:
            raise ValueError(f"format may hold plain names in braces only, such as {{question}}; found {{{name}}}")
        names.append(name)
    return names
