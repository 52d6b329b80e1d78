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
    if isinstance(getattr(module, "weight", None), torch.Tensor) and "weight" not in parameters:
        return False  # a frozen batch norm (DETR's) holds it as a buffer
    return (
        set(parameters) <= {"weight", "bias"}
        and norm_width(module) is not None
        and all(p.dim() == 1 for p in parameters.values())
    )


def multiplies_plainly(norm: nn.Module) -> bool:
    """Whether a norm computes as torch's own, over the last dimension and times its weight."""
    own = (nn.LayerNorm.forward, nn.RMSNorm.forward)
    return isinstance(norm, (nn.LayerNorm, nn.RMSNorm)) and type(norm).forward in own


def check_axis(norm: nn.Module, name: str) -> None:
    """
    Refuse a norm over another dimension than the last, such as ConvNeXt's over channels that come first: it takes what
    no norm over `d` features can, an input whose last dimension is another one. A norm without values (on the meta
    device, offloaded or split over processes) is let through.

    Args:
        norm (`nn.Module`): the norm.
        name (`str`): of its site.

    Raises:
        ValueError: it is of that kind.
    """
    width = norm_width(norm) or 1
    plain = all(type(p.data) is torch.Tensor and not p.is_meta and p.numel() == width for p in norm.parameters())
    if multiplies_plainly(norm) or not plain or width == 1:
        return
    values = {n: p.detach().cpu().float() for n, p in norm.named_parameters()}
    other = 3 if width == 2 else 2  # and not 1, which any weight would be spread over
    for shape in ((1, width, other), (1, width, other, other)):
        try:
            with torch.no_grad():
                torch.func.functional_call(norm, values, torch.ones(shape, device="cpu"))
        except Exception:  # as it should; which error it is, is the norm's own affair
            continue
        raise ValueError(
            f"{name!r} ({type(norm).__name__}) does not normalise the last dimension, so that DSO cannot steer it. "
            "Leave it out with exclude_modules, or name the norms to steer in target_modules."
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
