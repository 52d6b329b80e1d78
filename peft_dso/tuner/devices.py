"""Where a site computes. The weights of a norm do not always tell: they may be offloaded, or there may be none."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Optional

import torch
from torch import nn


REMEDY = (
    "Load the base model without offloading, or put the adapter on it with get_peft_model(model, "
    "DSOConfig.from_pretrained(folder)) and set_peft_model_state_dict(model, load_peft_weights(folder))."
)


def _hook_device(module: nn.Module) -> Optional[torch.device]:
    """Where accelerate's hook, if there is one, brings what a module needs before it runs."""
    hook: Any = getattr(module, "_hf_hook", None)
    for found in (hook, *getattr(hook, "hooks", ())):
        device = getattr(found, "execution_device", None)
        if device is not None:
            return torch.device(device)
    return None


def execution_device(*modules: nn.Module) -> Optional[torch.device]:
    """
    The device on which a module computes: that of its parameters, or, where they are offloaded (accelerate leaves
    them on the meta device in between), that of its hook.

    Args:
        *modules (`nn.Module`): the module, and whom to ask next where it has neither parameters nor a hook.

    Returns:
        `torch.device` or `None`: the meta device for a model without values; `None` where nothing tells.
    """
    for module in modules:
        parameter = next(module.parameters(), None)
        device = parameter.device if parameter is not None else None
        if device is None or device.type == "meta":
            device = _hook_device(module) or device
        if device is not None:
            return device
    return None


def check_hooks(model: nn.Module, names: Iterable[str]) -> None:
    """
    Refuse a model of which some modules are offloaded and nothing says where they compute.

    Args:
        model (`nn.Module`): the model; one that is on the meta device as a whole is fine.
        names (`Iterable[str]`): of the modules.

    Raises:
        ValueError: there is such a module.
    """
    lost = [name for name in names if getattr(execution_device(model.get_submodule(name)), "type", "") == "meta"]
    if lost and not all(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(
            f"{lost[0]!r} is offloaded, and the hook that brings it back is gone: PeftModel.from_pretrained removes "
            f"it from a base model with a part on disk. {REMEDY}"
        )


def check_present(model: nn.Module, purpose: str) -> None:
    """
    Refuse a model whose weights are not all there.

    Args:
        model (`nn.Module`): the model.
        purpose (`str`): what needs them, for the message.

    Raises:
        ValueError: a weight is offloaded, on the meta device, or held in part only (shape `(0,)`, as DeepSpeed's
            ZeRO-3 leaves it).
    """
    for name, parameter in model.named_parameters():
        if parameter.is_meta or parameter.numel() == 0:
            raise ValueError(
                f"{purpose}: the weights of {name!r} are not on this process's device (offloaded, partitioned or "
                "never loaded). Load the model whole, without offloading, first."
            )
