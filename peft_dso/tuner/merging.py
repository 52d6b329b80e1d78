"""Folding a slope and a shift into the weight and bias of a norm."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Optional

import torch
from torch import nn

from .norms import multiplies_plainly


def fold_into_norm(
    norm: Any,
    slope: torch.Tensor,
    shift: torch.Tensor,
    original: Optional[tuple[torch.Tensor, Optional[torch.Tensor]]] = None,
) -> tuple[torch.Tensor, Optional[torch.Tensor]]:
    """
    Weight and bias of a norm with w a and w b folded in (see [`DSOLayer.folded_weights`]).

    Args:
        norm (`nn.Module`): the norm.
        slope (`torch.Tensor`): w a, shape `(d,)`.
        shift (`torch.Tensor`): w b, shape `(d,)`.
        original (`tuple`, *optional*): its weight and bias, if it holds others at the moment.

    Returns:
        The weight, shape `(d,)`, and the bias, shape `(d,)`, or `None` where the norm has none.

    Raises:
        ValueError: a shift has no bias to go to, a slope no weight, the weight is offloaded, or the norm is not of a
            known form.
    """
    weight, bias = original or (getattr(norm, "weight", None), getattr(norm, "bias", None))
    if weight is None:
        raise ValueError(f"{type(norm).__name__} has no weight that a slope could be merged into.")
    if weight.is_meta:
        raise ValueError(
            f"The weight of {type(norm).__name__} is offloaded: nothing can be merged into it. Load the base model "
            "without offloading, or keep the adapter unmerged."
        )
    if bias is None and bool(shift.any()):
        raise ValueError(
            f"{type(norm).__name__} has no bias, so the shift has nowhere to go. Keep the adapter unmerged, train "
            "with DSOConfig(learn_shift=False), export a checkpoint whose readers take the shift (peft-dso export), "
            "or set the strength to 0 to merge nothing."
        )
    offset = weight_offset(norm)
    wide = torch.promote_types(weight.dtype, torch.float32)
    new_weight = (weight.detach().to(wide) + offset) * (1 + slope) - offset
    new_bias = None if bias is None else bias.detach().to(wide) * (1 + slope) + shift
    return new_weight.to(weight.dtype), None if new_bias is None else new_bias.to(weight.dtype)


def check_unshared(model: nn.Module, norms: Mapping[str, nn.Module]) -> None:
    """
    Refuse to fold into norms whose parameters another module computes with too: it would be steered as well, or twice.

    Args:
        model (`nn.Module`): the model.
        norms (`Mapping[str, nn.Module]`): by the names of their sites.

    Raises:
        ValueError: there is such a norm.
    """
    users: dict[int, set[int]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            users.setdefault(id(parameter), set()).add(id(module))
    for name, norm in norms.items():
        if any(len(users[id(parameter)]) > 1 for parameter in norm.parameters(recurse=False)):
            raise ValueError(
                f"The weights of {name!r} are those of another module too (tied): nothing can be folded into them. "
                "Keep the adapter unmerged, or give the norm weights of its own."
            )


def weight_offset(norm: nn.Module) -> float:
    """
    0 for a norm that multiplies by its weight, 1 for one that multiplies by 1 + weight: found by running a copy on
    weights of 0 and 1, because class names do not tell.

    Raises:
        ValueError: the norm does neither.
    """
    if multiplies_plainly(norm):
        return 0.0
    probe: Any = copy.deepcopy(norm).float()
    bias = getattr(probe, "bias", None)
    x = torch.linspace(-1.0, 2.0, probe.weight.shape[0], device=probe.weight.device)[None]
    outputs = []
    with torch.no_grad():
        if bias is not None:
            bias.zero_()
        for value in (0.0, 1.0):
            probe.weight.fill_(value)
            outputs.append(probe(x))
    at_zero, at_one = outputs
    if not at_zero.any():
        return 0.0
    if torch.allclose(at_one, 2 * at_zero):
        return 1.0
    raise ValueError(
        f"{type(norm).__name__} multiplies neither by its weight nor by 1 + weight: nothing to merge into."
    )
