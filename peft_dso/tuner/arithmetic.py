"""Adapters made from adapters: weighted sums, and what is left when the weakest neurons go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Optional

import torch

from .affine import DSOAffine
from .config import DSOConfig


def check_sum(configs: Mapping[str, Any], adapters: Sequence[str], weights: Sequence[float], name: str) -> None:
    """
    Refuse a weighted sum that cannot be made.

    Args:
        configs (`Mapping[str, DSOConfig]`): of the loaded adapters, by name.
        adapters (`Sequence[str]`): whose pairs are added.
        weights (`Sequence[float]`): one for each.
        name (`str`): of the new adapter.

    Raises:
        ValueError: an adapter is unknown, the new name is taken, or the weights do not fit.
    """
    if not adapters or any(adapter not in configs for adapter in adapters):
        raise ValueError(f"adapters={adapters!r}: name loaded adapters, of {', '.join(configs)}.")
    if name in configs:
        raise ValueError(f"There is an adapter {name!r} already. Delete it or choose another name.")
    if len(weights) != len(adapters) or not all(math.isfinite(weight) for weight in weights):
        raise ValueError(f"weights={weights!r}: give one finite number for each of the {len(adapters)} adapters.")
    if any(configs[adapter].modules_to_save for adapter in adapters):
        raise ValueError("Adapters with modules_to_save cannot be combined: their modules do not add.")


def sum_config(configs: Sequence[DSOConfig], sites: list[str]) -> DSOConfig:
    """The configuration of a weighted sum of adapters, at the sites that one of them has."""
    return DSOConfig(
        task_type=configs[0].task_type,
        base_model_name_or_path=configs[0].base_model_name_or_path,
        target_modules=sites,
        learn_slope=any(config.learn_slope for config in configs),
        learn_shift=any(config.learn_shift for config in configs),
    )


@torch.no_grad()
def add_weighted(total: DSOAffine, pairs: Sequence[Optional[DSOAffine]], weights: Sequence[float]) -> None:
    """Add to the pair `total` others times their weights, in place; `None` is an adapter that lacks the site."""
    for pair, weight in zip(pairs, weights, strict=True):
        for name, vector in pair.named_parameters() if pair is not None else ():
            getattr(total, name).add_(vector, alpha=weight)


@torch.no_grad()
def prune(pairs: Sequence[DSOAffine], units: Sequence[torch.Tensor], keep: float) -> int:
    """
    Set the weakest neurons of an adapter exactly to zero, in place. A neuron is one feature of one site; its weight
    is |a| + |b| / g with the unit g of the shift, so that slope and shift, and norms of large and small gains, can be
    compared.

    Args:
        pairs (`Sequence[DSOAffine]`): of all sites.
        units (`Sequence[torch.Tensor]`): the unit of each site's shift, shape `(d,)`, see [`shift_unit`].
        keep (`float`): share of the neurons to keep, in [0, 1].

    Returns:
        `int`: the number of neurons that are not zero now.

    Raises:
        ValueError: `keep` is outside [0, 1].
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"keep is a share in [0, 1], got {keep!r}.")
    sizes = []
    for pair, unit in zip(pairs, units, strict=True):
        parts = [] if pair.slope is None else [pair.slope.abs().cpu()]
        parts += [] if pair.shift is None else [pair.shift.abs().cpu() / unit.cpu()]
        sizes.append(torch.stack(parts).sum(0))
    flat = torch.cat(sizes)
    kept = torch.zeros_like(flat, dtype=torch.bool)
    kept[flat.topk(round(keep * flat.numel())).indices] = True
    kept &= flat > 0
    for pair, mask in zip(pairs, kept.split([size.numel() for size in sizes]), strict=True):
        for parameter in pair.parameters():
            parameter.mul_(mask.to(parameter.device))
    return int(kept.sum())
