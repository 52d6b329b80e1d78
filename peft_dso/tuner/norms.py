"""What a norm is."""

from __future__ import annotations

from typing import Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


def norm_width(module: nn.Module) -> Optional[int]:
    """The number of features of a norm's output, from its weight or, without a weight, its `normalized_shape`."""
    weight = getattr(module, "weight", None)
    if isinstance(weight, torch.Tensor):
        return int(weight.shape[0]) if weight.dim() == 1 else None
    shape = getattr(module, "normalized_shape", None)
    if isinstance(shape, int):
        return shape
    return int(shape[0]) if shape is not None and len(shape) == 1 else None


def is_norm(module: nn.Module) -> bool:
    """
    Whether a module normalises the last dimension: `nn.LayerNorm`, `nn.RMSNorm`, and the classes of that kind which
    models bring along (no children, one vector as weight and perhaps one as bias, "norm" in the class name). Batch,
    group and instance norms are not of that kind.
    """
    if isinstance(module, BaseTunerLayer):
        module = module.get_base_layer()
    if isinstance(module, (nn.modules.batchnorm._NormBase, nn.GroupNorm)):
        return False
    if isinstance(module, (nn.LayerNorm, nn.RMSNorm)):
        return norm_width(module) is not None
    if "norm" not in type(module).__name__.lower() or next(module.children(), None) is not None:
        return False
    parameters = dict(module.named_parameters(recurse=False))
    return (
        set(parameters) <= {"weight", "bias"}
        and norm_width(module) is not None
        and all(p.dim() == 1 for p in parameters.values())
    )


def without_width(model: nn.Module) -> str:
    """A sentence on what is called a norm and does not say how wide it is, if there is such a thing."""
    kinds = {
        type(module).__name__
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        and not [*module.children(), *module.parameters(recurse=False)]
        and norm_width(module) is None
    }
    return f" {', '.join(sorted(kinds))}: no weight and no width, which cannot be steered." if kinds else ""
