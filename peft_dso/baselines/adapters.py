"""A fitted method as an ordinary PEFT adapter: DSO's pairs, or a stock LoRA that is nothing but a bias."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

from ..tuner import DSOConfig
from ..tuner.strength import dso_layers


def add_pairs(model: nn.Module, sites: Sequence[str]) -> PeftModel:
    """
    A model with a DSO adapter of zeros at some norms.

    Args:
        model (`nn.Module`): the base model; it is wrapped in place.
        sites (`Sequence[str]`): full names of norms.

    Returns:
        `PeftModel`: in evaluation mode.
    """
    return get_peft_model(model, DSOConfig(task_type="CAUSAL_LM", target_modules=list(sites))).eval()


def pairs_of(model: nn.Module) -> dict[str, Any]:
    """The pairs ([`~peft_dso.tuner.DSOAffine`]) of the adapter "default" by the name of the norm in the base model."""
    prefix = "base_model.model."
    return {name.removeprefix(prefix): layer.dso_affine["default"] for name, layer in dso_layers(model).items()}


@torch.no_grad()
def set_pair(affine: Any, slope: Optional[torch.Tensor] = None, shift: Optional[torch.Tensor] = None) -> None:
    """
    Write a pair; what is not given becomes zero.

    Args:
        affine (`DSOAffine`): of [`pairs_of`].
        slope (`torch.Tensor`, *optional*): shape `(d,)`.
        shift (`torch.Tensor`, *optional*): shape `(d,)`.
    """
    for parameter, value in ((affine.slope, slope), (affine.shift, shift)):
        parameter.zero_() if value is None else parameter.copy_(value)


@contextmanager
def biases_meant() -> Iterator[None]:
    """
    Two warnings of PEFT off within the block: that a LoRA's bias cannot be merged where the layer has none (it is to
    stay a knob), and, when it is saved, that it is one-dimensional, which PEFT takes for a shard of DeepSpeed's.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*lora_bias=True.*")
        warnings.filterwarnings("ignore", message=r".*invalid shape.*lora_B\.bias:")
        yield


def add_output_biases(model: nn.Module, biases: Mapping[str, torch.Tensor]) -> PeftModel:
    """
    A model with a stock LoRA that adds a vector to the output of some linear layers: r = lora_alpha = 1, A = B = 0 and
    a bias, so that LoRA's scaling multiplies the vector.

    Args:
        model (`nn.Module`): the base model; it is wrapped in place.
        biases (`Mapping[str, torch.Tensor]`): by the full name of a linear layer, shape `(out,)`.

    Returns:
        `PeftModel`: in evaluation mode.
    """
    config = LoraConfig(
        task_type="CAUSAL_LM", r=1, lora_alpha=1, lora_dropout=0.0, lora_bias=True, target_modules=list(biases)
    )
    with biases_meant():
        fitted = get_peft_model(model, config).eval()
    set_output_biases(fitted, biases)
    return fitted


@torch.no_grad()
def set_output_biases(model: nn.Module, biases: Mapping[str, torch.Tensor]) -> None:
    """
    Write the vectors of [`add_output_biases`]; layers that are not named add nothing.

    Args:
        model (`PeftModel`): from [`add_output_biases`].
        biases (`Mapping[str, torch.Tensor]`): by the full name of a linear layer, shape `(out,)`.
    """
    for name, module in model.named_modules():
        if "default" in getattr(module, "lora_B", {}):
            layer: Any = module
            layer.lora_A["default"].weight.zero_()
            layer.lora_B["default"].weight.zero_()
            vector = biases.get(name.removeprefix("base_model.model."))
            bias = layer.lora_B["default"].bias
            bias.zero_() if vector is None else bias.copy_(vector)
