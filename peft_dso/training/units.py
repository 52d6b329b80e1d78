"""Steps of slope and shift in units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from ..scoring import input_device


class ScaledSteps:
    """
    Multiplies each step of an optimizer on some parameters, feature by feature.

    An Adam step has the size of the learning rate whatever the gradient. In h' = h + w (a * h + b) the same step of a
    slope or a shift means little in one feature and much in another, and differs from model to model.

    Args:
        optimizer (`torch.optim.Optimizer`): whose steps to scale; hooks are put on it.
        units (`Callable`): gives parameters and their units, each of shape `(d,)`; called at the first step.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, units: Callable[[], Iterable[tuple[nn.Parameter, torch.Tensor]]]
    ) -> None:
        self.units = units
        self.laid: list[tuple[nn.Parameter, torch.Tensor]] = []
        self.before: list[torch.Tensor] = []
        optimizer.register_step_pre_hook(self._note)
        optimizer.register_step_post_hook(self._scale)

    def _note(self, *args: Any) -> None:
        self.laid = self.laid or [(parameter, like(unit, parameter)) for parameter, unit in self.units()]
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


def next_token_log_probs(model: Any, text: Sequence[int]) -> torch.Tensor:
    """What a model says after each token of a text, shape `(tokens, vocabulary)`, float32."""
    input_ids = torch.tensor([text], device=input_device(model))
    log_p: torch.Tensor = model(input_ids=input_ids, use_cache=False).logits[0].float().log_softmax(-1)
    return log_p
