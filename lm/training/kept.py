"""Small JSON files beside the snapshots: what the menu looks at, and what was measured. No model depends on them, so one that can't be read is as if
it were not there, and one that can't be written stays as it was.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_sources.disk import discard


def read_kept(path: Path) -> dict[str, Any]:
    """What a file holds; empty where there is none, or a damaged one."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def keep(path: Path, held: Mapping[str, Any]) -> None:
    """Written aside and renamed."""
    aside = path.with_name(f"{path.name}.new")
    try:
        aside.write_text(json.dumps(held), encoding="utf-8")
        aside.replace(path)
    except OSError:
        discard(aside)
