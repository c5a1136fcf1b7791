"""The table of units: one published mechanism a file. Adding one is a file here, its switches in lm/preset, and a line in UNITS."""

from lm.units.attention import Attention
from lm.units.colt5 import Colt5
from lm.units.colt5_attention import Colt5Attention
from lm.units.deltanet import Deltanet
from lm.units.gla import Gla
from lm.units.hyena import Hyena
from lm.units.longformer import Longformer
from lm.units.mamba2 import Mamba2
from lm.units.moe import Moe
from lm.units.relu2 import Relu2
from lm.units.retro import Retro
from lm.units.rwkv import Rwkv
from lm.units.rwkv_channel import RwkvChannel
from lm.units.s5 import S5
from lm.units.shared_attention import SharedAttention
from lm.units.swiglu import SwiGLU
from lm.units.unit import Context, Mixed, State, Unit

UNITS: dict[str, type[Unit]] = {
    "attention": Attention,
    "longformer": Longformer,
    "s5": S5,
    "hyena": Hyena,
    "rwkv": Rwkv,
    "rwkv_channel": RwkvChannel,
    "deltanet": Deltanet,
    "mamba2": Mamba2,
    "gla": Gla,
    "shared_attention": SharedAttention,
    "retro": Retro,
    "moe": Moe,
    "colt5_attention": Colt5Attention,
    "colt5": Colt5,
    "swiglu": SwiGLU,
    "relu2": Relu2,
}

__all__ = ["UNITS", "Context", "Mixed", "State", "Unit"]
