"""The table of units: one published mechanism a file. Adding one is a file here, its switches in lm/preset, and a line in UNITS."""

from lm.units.attention import Attention
from lm.units.hyena import Hyena
from lm.units.swiglu import SwiGLU
from lm.units.unit import Context, Mixed, State, Unit

UNITS: dict[str, type[Unit]] = {
    "attention": Attention,
    "swiglu": SwiGLU,
    "hyena": Hyena,
}

__all__ = ["UNITS", "Context", "Mixed", "State", "Unit"]
