"""Norms of queries and keys, head by head (Henry et al. 2020, https://arxiv.org/abs/2010.04245): what attention adds up stays bounded."""

from torch import Tensor, nn

from lm.preset.switches import Preset


class HeadNorm(nn.RMSNorm):
    """Of (..., K), computed in the dtype of the scale and given back in that of `x`: torch's fused norm takes no two dtypes, and autocast leaves it both."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype)).to(x.dtype)


def head_norm(preset: Preset) -> nn.Module:
    """One for the preset's heads; nothing where it asks for none."""
    return HeadNorm(preset.model.head_size, eps=preset.model.norm_eps) if preset.model.qk_norm else nn.Identity()
