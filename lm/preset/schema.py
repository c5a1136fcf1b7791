"""configs/preset.schema.json, made from the switches, so that editors complete and check presets.

`python -m lm.preset.schema` writes it anew; a test holds the file to the types.
"""

import json
from pathlib import Path
from typing import Any

from lm.preset.switches import Preset

SCHEMA_FILE = Path("configs/preset.schema.json")


def preset_schema() -> dict[str, Any]:
    """The JSON schema of a preset file."""
    schema = Preset.model_json_schema()
    schema["properties"]["$schema"] = {"type": "string", "description": "Where an editor finds this schema."}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def schema_text() -> str:
    """The file's content."""
    return json.dumps(preset_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    SCHEMA_FILE.write_text(schema_text(), encoding="utf-8")
