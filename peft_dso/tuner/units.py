"""How large the output of a norm is, feature by feature: the unit of a shift."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from .merging import weight_offset
from .norms import norm_width


def shift_unit(norm: nn.Module) -> torch.Tensor:
    """
    The size of a norm's gain per feature: what it multiplies a normalised feature by, and so the typical size of h in
    h' = h + w (a * h + b). A slope is relative to h; a shift in this unit is too.

    Args:
        norm (`nn.Module`): the norm, without an adapter.

    Returns:
        `torch.Tensor`: shape `(d,)`, float32, above 0: |gain|, at least a tenth of its root mean square; 1 for a norm
        without a weight.
    """
    weight: Any = getattr(norm, "weight", None)
    if weight is None:
        return torch.ones(norm_width(norm) or 1)
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    try:
        offset = weight_offset(norm)
    except (ValueError, RuntimeError, NotImplementedError):  # a form of its own: its weight is the best guess
        offset = 0.0
    gain = (weight.detach().float() + offset).abs()
    size = gain.square().mean().sqrt()
    return gain.clamp(min=float(0.1 * size)) if size > 0 else torch.ones_like(gain)
