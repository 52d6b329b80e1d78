"""Steps of the shift in units of what it is added to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class ScaledSteps:
    """
    Multiplies each step of an optimizer on some parameters, feature by feature.

    h' = h + w (a * h + b): a is relative to h, b is not, and h is as large as the norm's gain, which is 0.04 to 0.4 in
    one model and 2 to 1,200 in another. An Adam step has the size of the learning rate whatever the gradient; scaled
    by the gain it is the same share of h everywhere, for slope and shift alike.

    Args:
        optimizer (`torch.optim.Optimizer`): whose steps to scale; hooks are put on it.
        units (`Iterable[tuple[nn.Parameter, torch.Tensor]]`): parameters and their units, each of shape `(d,)`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, units: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> None:
        self.units = [(parameter, like(unit, parameter)) for parameter, unit in units]
        self.before: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(self._note)
        optimizer.register_step_post_hook(self._scale)

    def _note(self, *args: Any) -> None:
        self.before = [parameter.detach().clone() for parameter, _ in self.units]

    @torch.no_grad()
    def _scale(self, *args: Any) -> None:
        for (parameter, unit), before in zip(self.units, self.before, strict=True):
            parameter.sub_(before).mul_(unit).add_(before)
        self.before = []


def like(unit: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """A unit on the device of its parameter, and sharded as it is (FSDP's DTensor)."""
    unit = unit.to(parameter.device)
    if hasattr(parameter, "placements"):
        from torch.distributed.tensor import distribute_tensor

        sharded: Any = parameter
        return distribute_tensor(unit, sharded.device_mesh, sharded.placements)
    return unit
