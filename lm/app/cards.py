"""What switches were measured to bring: cards of docs/cards.json, which tests/benchmarks/cards.py writes, in words beside the switches.

A card says what one switch, at one value, changes against a model of attention alone. Where the file is not there, or holds something
else, nothing is shown.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from lm.app.words import counted, one_line
from lm.preset import Preset

CARDS = Path("docs") / "cards.json"  # beside configs/
MOST_BYTES = 1_000_000
WORTH_TELLING = 0.02  # of the parameters
Ratio = Annotated[float, Field(gt=0, lt=1000, allow_inf_nan=False)]
Bits = Annotated[float, Field(gt=-100, lt=100, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1, lt=10**15)]
KEY = re.compile(r'( *)"([a-z0-9_]+)": ')


class Card(BaseModel):
    """One switch at one value, against attention alone."""

    model_config = ConfigDict(strict=True, frozen=True)

    switch: str = Field(max_length=80)  # its JSON path
    value: bool | int | float | Annotated[str, Field(max_length=40)]
    note: str = Field("", max_length=60)  # what else was set
    bits: Bits  # held-out bits per byte, more or less, mean of the seeds
    speed: Ratio  # tokens a second, times those of attention alone
    memory: Ratio
    parameters: Ratio
    hidden_size: Count
    tokens: Count
    seeds: Count

    @property
    def words(self) -> str:
        """In a line: "-0.011 bits/byte, 0.93x speed, 1.02x memory; 64 wide, 1M tokens, 2 seeds"."""
        which = [json.dumps(self.value)] * (self.value is not True) + [self.note] * bool(self.note)
        found = [f"{self.bits:+z.3f} bits/byte", f"{self.speed:.2f}x speed", f"{self.memory:.2f}x memory"]
        found += [f"{self.parameters:.2f}x parameters"] * (abs(self.parameters - 1) >= WORTH_TELLING)
        where = f"{self.hidden_size} wide, {counted(self.tokens)} tokens, {self.seeds} seed{'s' * (self.seeds > 1)}"
        return one_line(f"{', '.join(which)}{': ' * bool(which)}{', '.join(found)}; {where}")


def read_cards(path: Path = CARDS) -> tuple[Card, ...]:
    """All cards of the file that can be read."""
    try:
        with path.open("rb") as file:
            told = json.loads(file.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return ()
    return tuple(card for each in (told if isinstance(told, list) else []) for card in _read(each))


def _read(told: Any) -> Iterator[Card]:
    try:
        yield Card.model_validate(told)
    except ValidationError:
        return


def cards_in_use(preset: Preset, cards: tuple[Card, ...]) -> Iterator[Card]:
    """Those of switches that the preset has at their value, in sections that are on."""
    sections = preset.model_dump(mode="json")
    for card in cards:
        *path, switch = card.switch.split(".")
        held: Any = sections
        for name in path:
            held = held.get(name, {}) if isinstance(held, dict) else {}
        if isinstance(held, dict) and held.get("enabled", True) and switch in held and repr(held[switch]) == repr(card.value):
            yield card


def switches(lines: list[str]) -> Iterator[str]:
    """The JSON path that each line of a preset, written out with two blanks for each level, is about; empty where it is about none."""
    path: list[str] = []
    for line in lines:
        key = KEY.match(line)
        if key:
            path = [*path[: len(key[1]) // 2 - 1], key[2]]
        yield ".".join(path) if key else ""
