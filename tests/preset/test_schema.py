"""The schema that editors use is the one of the types, and it agrees with the decoder."""

import json
from pathlib import Path

import jsonschema
import pytest

from lm.preset.schema import SCHEMA_FILE, preset_schema, schema_text


def test_the_file_is_up_to_date() -> None:
    assert SCHEMA_FILE.read_text(encoding="utf-8") == schema_text(), "run: python -m lm.preset.schema"


@pytest.mark.parametrize("path", sorted(Path("configs").glob("[0-9]*.json")), ids=lambda path: path.stem)
def test_shipped_presets_fit_it(path: Path) -> None:
    jsonschema.validate(json.loads(path.read_text(encoding="utf-8")), preset_schema())


@pytest.mark.parametrize("raw", [{}, {"data": {"sources": ["wikipeda"]}}, {"data": {"sources": ["c4"]}, "modle": {}}])
def test_what_the_decoder_refuses_it_refuses(raw: dict[str, object]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(raw, preset_schema())


def test_every_switch_has_its_line() -> None:
    schema = preset_schema()
    silent = [
        f"{name}.{key}" for name, part in schema["$defs"].items() for key, value in part["properties"].items() if not value.get("description") and key != "type"
    ]
    assert silent == []
