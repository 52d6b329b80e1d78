"""Steps of the shift in units of what it is added to."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn


class ScaledSteps:
    """
    Multiplies each step of an optimizer on some parameters, feature by feature.

    h' = h + w (a * h + b): a is relative to h, b is not, and h differs from feature to feature and model to model. An
    Adam step has the size of the learning rate whatever the gradient; scaled by the size of h it is the same share of
    h everywhere, for slope and shift alike.

    Args:
        optimizer (`torch.optim.Optimizer`): whose steps to scale; hooks are put on it.
        units (`Iterable[tuple[nn.Parameter, torch.Tensor]]`): parameters and their units, each of shape `(d,)`; read
            at the first step.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, units: Iterable[tuple[nn.Parameter, torch.Tensor]]) -> None:
        self.units = units
        self.laid: list[tuple[nn.Parameter, torch.Tensor]] = []
        self.before: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(self._note)
        optimizer.register_step_post_hook(self._scale)

    def _note(self, *args: Any) -> None:
        self.laid = self.laid or [(parameter, like(unit, parameter)) for parameter, unit in self.units]
        self.before = [parameter.detach().clone() for parameter, _ in self.laid]

    @torch.no_grad()
    def _scale(self, *args: Any) -> None:
        for (parameter, unit), before in zip(self.laid, self.before, strict=True):
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
