"""How large the output of a norm is, feature by feature: the unit of a shift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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


@torch.no_grad()
def output_unit(norms: Sequence[nn.Module], run: Callable[[], Any]) -> list[torch.Tensor]:
    """
    How large the outputs of some norms are, measured: the root mean square of h per feature. In a model in which a few
    features carry nearly all of the residual stream the others are far smaller than their gain (Gemma 3: 0.04 of it),
    and a shift in units of the gain moves it a hundred times as far as a slope of the same size.

    Args:
        norms (`Sequence[nn.Module]`): the norms, without an adapter.
        run (`Callable`): runs the model that they are in, on inputs such as those to come.

    Returns:
        `list[torch.Tensor]`: of each norm, shape `(d,)`, float32, at least a tenth of the median over its features;
        [`shift_unit`] for a norm that was not called.
    """
    squares: dict[int, torch.Tensor] = {}
    counts: dict[int, int] = {}

    def note(number: int) -> Callable[..., None]:
        def hook(norm: nn.Module, inputs: Any, h: torch.Tensor) -> None:
            h = h.detach().float().flatten(0, -2)
            squares[number] = squares.get(number, 0.0) + h.square().sum(0)
            counts[number] = counts.get(number, 0) + len(h)

        return hook

    handles = [norm.register_forward_hook(note(number)) for number, norm in enumerate(norms)]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return [
        _floored((squares[n] / counts[n]).sqrt()) if counts.get(n) else shift_unit(norm)
        for n, norm in enumerate(norms)
    ]


def _floored(size: torch.Tensor) -> torch.Tensor:
    alive = size[size > 0]
    return size.clamp(min=float(0.1 * alive.median())) if len(alive) else torch.ones_like(size)
