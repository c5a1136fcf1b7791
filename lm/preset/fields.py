"""Types of switches that several sections share."""

import re
from typing import Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

LAYER_WORDS = ("all", "even", "odd", "first_half", "last_half", "ffn")


def _checked_layers(value: Any) -> Any:
    if isinstance(value, str) and value not in LAYER_WORDS and not re.fullmatch(r"every:[1-9]\d*", value):
        raise PydanticCustomError("unknown_choice", "no such layers", {"choices": [*LAYER_WORDS, "every:N", "[0, 2, ...]"]})
    return value


Layers = Annotated[
    Annotated[str, Field(pattern=r"^(all|even|odd|first_half|last_half|ffn|every:[1-9]\d*)$")]
    | Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(strict=False, min_length=1)],
    BeforeValidator(_checked_layers),
]
Share = Annotated[float, Field(ge=0, le=1)]
Weight = Annotated[float, Field(ge=0, le=1000, allow_inf_nan=False)]
