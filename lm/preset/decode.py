"""Reading a preset: strict, and every error is one line that says where, what was found, what is allowed, and the nearest spelling."""

import difflib
import json
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lm.preset.learned import check_objectives, check_written
from lm.preset.options import check_options
from lm.preset.plan import check_plan
from lm.preset.switches import Preset

# Names of the same switch in older presets.
SAME_SWITCH = {"use_in_layers": "layers", "conditional_layers": "layers"}


class PresetError(ValueError):
    """A preset can't be used. The message is one line."""


def load_preset(path: str | Path) -> Preset:
    """The preset in the JSON file at `path`, with every default filled in. PresetError, one line, when it can't be used."""
    try:
        text = Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise PresetError(f"{path}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise PresetError(f"{path}: is not UTF-8 text (byte {error.start})") from None
    preset = preset_from_json(text, str(path))
    try:
        check_written(preset)
    except ValueError as error:
        raise PresetError(f"{path}: {error}") from None
    return preset if preset.name else preset.model_copy(update={"name": Path(path).stem})


def preset_from_json(text: str, origin: str) -> Preset:
    """The preset in a JSON text. `origin` stands for the file in errors."""
    try:
        raw = json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_no_such_number)
    except json.JSONDecodeError as error:
        raise PresetError(f"{origin}: line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise PresetError(f"{origin}: nested too deep") from None
    except ValueError as error:
        raise PresetError(f"{origin}: {error}") from None
    if not isinstance(raw, dict):
        raise PresetError(f"{origin}: found {_shown(raw)}, allowed: an object in braces, with at least data.sources")
    raw = _sectioned(raw, origin)
    try:
        preset = Preset.model_validate(raw)
        check_plan(preset)
        check_options(preset)
        check_objectives(preset)
    except ValidationError as error:
        raise PresetError(f"{origin}: {_in_a_line(error, raw)}") from None
    except ValueError as error:
        raise PresetError(f"{origin}: {error}") from None
    return preset


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f'"{key}" stands twice in one object')
        seen[key] = value
    return seen


def _no_such_number(name: str) -> Any:
    raise ValueError(f"{name} is not a number that JSON knows")


def _sectioned(raw: dict[str, Any], origin: str) -> dict[str, Any]:
    """`raw` with older flat names (use_hyena, hyena_filter_order) moved into their sections. "$schema" is for editors and goes."""
    sections = [name for name in Preset.model_fields if name not in ("name", "about")]
    out: dict[str, Any] = {key: dict(value) if isinstance(value, dict) else value for key, value in raw.items() if key != "$schema"}
    for key in [key for key in out if key not in Preset.model_fields]:
        section = _section_of(key, sections)
        if section is None:
            continue
        place = out.setdefault(section, {})
        switch = "enabled" if key == f"use_{section}" else key.removeprefix(f"{section}_")
        if not isinstance(place, dict) or switch in place:
            raise PresetError(f"{origin}: {key}: stands here and as {section}.{switch}; keep one")
        place[switch] = out.pop(key)
    for section in filter(lambda name: isinstance(out.get(name), dict), sections):
        for old, new in SAME_SWITCH.items():
            if old in out[section] and new in Preset.model_fields[section].annotation.model_fields:
                if new in out[section]:
                    raise PresetError(f"{origin}: {section}.{old}: is the older name of {new}, which stands there too; keep one")
                out[section][new] = out[section].pop(old)
    return out


def _section_of(key: str, sections: list[str]) -> str | None:
    longest_first = sorted(sections, key=len, reverse=True)
    return next((name for name in longest_first if key == f"use_{name}" or key.startswith(f"{name}_")), None)


def _in_a_line(error: ValidationError, raw: dict[str, Any]) -> str:
    """The first of pydantic's errors in our words."""
    first = error.errors(include_url=False)[0]
    path, schema = _followed(first["loc"], raw)
    kind, found = first["type"], first["input"]
    if kind == "extra_forbidden":
        keys = list(schema.get("properties", {}))
        return f"{path}: unknown key{_nearest(first['loc'][-1], keys)}; allowed: {', '.join(keys)}"
    if kind == "missing":
        return f"{path}: missing; allowed: {_allowed(schema)}"
    if kind == "value_error":
        return f"{path}: {first['ctx']['error']}" if path else str(first["ctx"]["error"])
    if kind == "union_tag_not_found":
        return f"{path}: a source needs a type; allowed: {', '.join(_source_names())}"
    if kind == "union_tag_invalid":
        tag = first["ctx"]["tag"]
        return f"{path}.type: found {_shown(tag)}{_nearest(tag, _source_names())}; allowed: {', '.join(_source_names())}"
    choices = first.get("ctx", {}).get("choices") or _choices(schema)
    allowed = ", ".join(map(str, choices)) if choices else _allowed(schema) or first["msg"].removeprefix("Input should be ")
    return f"{path}: found {_shown(found)}{_nearest(found, choices)}; allowed: {allowed}"


def _source_names() -> list[str]:
    from data_sources.catalogue import BUILT_IN

    return ["hf", "files", "pdf", *BUILT_IN]


def _shown(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _nearest(found: Any, choices: list[Any]) -> str:
    close = difflib.get_close_matches(str(found), [str(choice) for choice in choices], n=1, cutoff=0.6)
    return f', did you mean "{close[0]}"?' if close else ""


def _followed(loc: tuple[int | str, ...], raw: Any) -> tuple[str, dict[str, Any]]:
    """The JSON path of pydantic's `loc` in `raw`, and the schema of what belongs there (for an unknown key, of its parent)."""
    whole = Preset.model_json_schema()
    path, schema = "", whole
    for depth, part in enumerate(loc):
        options = _options(schema, whole)
        if isinstance(part, int):
            path, raw = f"{path}[{part}]", raw[part] if isinstance(raw, list) and part < len(raw) else None
            schema = next((option["items"] for option in options if "items" in option), {})
            continue
        inside = next((option["properties"][part] for option in options if part in option.get("properties", {})), None)
        is_tag = inside is None and not (isinstance(raw, dict) and part in raw)
        if is_tag:
            tagged = [option for option in options if option.get("properties", {}).get("type", {}).get("const") == part]
            schema = tagged[0] if tagged else schema
            continue
        path = f"{path}.{part}" if path else part
        if inside is None and depth == len(loc) - 1:
            return path, next((option for option in options if "properties" in option), {})
        raw = raw.get(part) if isinstance(raw, dict) else None
        schema = inside if inside is not None else next((o["additionalProperties"] for o in options if isinstance(o.get("additionalProperties"), dict)), {})
    return path, _options(schema, whole)[0] if len(_options(schema, whole)) == 1 else schema


def _options(schema: dict[str, Any], whole: dict[str, Any]) -> list[dict[str, Any]]:
    """`schema` with references followed and alternatives laid side by side."""
    if "$ref" in schema:
        return _options(whole["$defs"][schema["$ref"].rsplit("/", 1)[-1]], whole)
    alternatives = schema.get("anyOf") or schema.get("oneOf")
    return [option for choice in alternatives for option in _options(choice, whole)] if alternatives else [schema]


def _choices(schema: dict[str, Any]) -> list[Any]:
    return schema.get("enum", [])


WORDS = {
    "integer": "an integer",
    "number": "a number",
    "string": "a text",
    "boolean": "true or false",
    "array": "a list",
    "object": "an object",
    "null": "null",
}


def _allowed(schema: dict[str, Any]) -> str:
    """What a schema allows, in words: "an integer from 1 to 1024, or null"."""
    if "anyOf" in schema:
        return ", or ".join(filter(None, map(_allowed, schema["anyOf"])))
    if "enum" in schema:
        return ", ".join(map(str, schema["enum"]))
    words = WORDS.get(schema.get("type", ""), "an object" if "$ref" in schema else "")
    if "minItems" in schema:
        return f"{words} of {schema['minItems']} or more"
    if schema.get("type") not in ("integer", "number"):
        return words
    bounds = [("minimum", "from"), ("exclusiveMinimum", "above"), ("maximum", "to"), ("exclusiveMaximum", "below")]
    return " ".join([words, *(f"{word} {schema[key]:,}" for key, word in bounds if key in schema)])
