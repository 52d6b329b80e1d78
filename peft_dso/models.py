"""A base model with its tokenizer or processor, with an adapter or without, as the command line loads it."""

from __future__ import annotations

import json
import os
from typing import Any, Optional

import torch
from huggingface_hub.errors import HFValidationError
from peft import PeftModel
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from .demo.model import smollm2_folder
from .tuner import DSOConfig


SMOLLM2 = "smollm2"


def best_device() -> torch.device:
    """The accelerator of this machine, or the CPU where there is none."""
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return torch.device("cpu") if accelerator is None else accelerator


def load_base(
    name: str, dtype: str = "float32", revision: Optional[str] = None, device: Optional[str] = "cpu"
) -> tuple[PreTrainedModel, Any]:
    """
    Load a base model.

    Args:
        name (`str`): a folder or a name on the Hub; `"smollm2"` is the model of the quick start.
        dtype (`str`, defaults to `"float32"`): such as `"bfloat16"` or `"auto"`.
        revision (`str`, *optional*): branch, tag or commit.
        device (`str`, *optional*, defaults to `"cpu"`): such as `"cuda:1"`; `None` is [`best_device`].

    Returns:
        The model in evaluation mode, and its tokenizer, padding on the left, or the processor of a vision-language
        model.

    Raises:
        OSError: there is no such model.
        RuntimeError: there is no such device.
        ValueError: there is no such dtype.
    """
    target = best_device() if device is None else _device(device)
    if dtype != "auto" and not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"dtype={dtype!r}: choose float32, bfloat16, float16 or auto.")
    folder = str(smollm2_folder()) if name == SMOLLM2 else name
    config = AutoConfig.from_pretrained(folder, revision=revision)
    pictured = config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    loader = AutoModelForImageTextToText if pictured else AutoModelForCausalLM
    model = loader.from_pretrained(folder, dtype=dtype, revision=revision)
    if not getattr(model, "is_quantized", False):  # quantised weights are where their library put them
        model = model.to(target)
    if pictured:
        return model.eval(), AutoProcessor.from_pretrained(folder, revision=revision)
    return model.eval(), AutoTokenizer.from_pretrained(folder, padding_side="left", revision=revision)


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # by kind of build, not by kind of fault
        reason = str(error).partition("\n")[0]
        raise RuntimeError(f"There is no device {name!r} here ({reason}); {best_device()} is one.") from None
    return device


def add_adapter(model: Any, adapter: str, name: str = "default", revision: Optional[str] = None) -> PeftModel:
    """
    Load an adapter into a base model, or one more into a `PeftModel`.

    Args:
        model (`PreTrainedModel` or `PeftModel`): it is changed in place.
        adapter (`str`): a folder or a name on the Hub.
        name (`str`, defaults to `"default"`): its name in the model.
        revision (`str`, *optional*): branch, tag or commit.

    Returns:
        `PeftModel`: the model with the adapter.

    Raises:
        ValueError: there is no such adapter, its files cannot be read, or it does not fit.
        RuntimeError: its vectors have other shapes than those of the base model.
    """
    try:
        if isinstance(model, PeftModel):
            model.load_adapter(adapter, name, revision=revision)
            return model
        return PeftModel.from_pretrained(model, adapter, adapter_name=name, revision=revision)
    except (HFValidationError, SafetensorError, json.JSONDecodeError) as error:
        # PEFT looks on the Hub for a file that is not in the folder.
        missing = os.path.isdir(adapter) and isinstance(error, HFValidationError)
        reason = "there is no adapter_model.safetensors" if missing else str(error)
        raise ValueError(f"The adapter {adapter} cannot be read: {reason}. Get it again.") from None


def load_adapted(
    name: str,
    adapter: str,
    dtype: str = "float32",
    revision: Optional[str] = None,
    device: Optional[str] = "cpu",
) -> tuple[Any, Any]:
    """
    Load a base model with an adapter of any of PEFT's types.

    Args:
        name (`str`): see [`load_base`].
        adapter (`str`): a folder or a name on the Hub.
        dtype (`str`, defaults to `"float32"`): see [`load_base`].
        revision (`str`, *optional*): of the adapter.
        device (`str`, *optional*, defaults to `"cpu"`): see [`load_base`].

    Returns:
        The `PeftModel` in evaluation mode, and the tokenizer or processor.

    Raises:
        OSError: there is no such model.
        ValueError: there is no such adapter, or it does not fit.
    """
    model, processor = load_base(name, dtype, device=device)
    return add_adapter(model, adapter, revision=revision).eval(), processor


def load_steered(
    name: str,
    adapter: str,
    dtype: str = "float32",
    revision: Optional[str] = None,
    device: Optional[str] = "cpu",
) -> tuple[Any, Any]:
    """
    Load a base model with a DSO adapter.

    Args and returns as [`load_adapted`].

    Raises:
        OSError: there is no such model.
        ValueError: there is no such adapter, it does not fit, or it is of another type.
    """
    model, processor = load_adapted(name, adapter, dtype, revision, device)
    config = model.active_peft_config
    if not isinstance(config, DSOConfig):
        raise ValueError(f"{adapter} holds an adapter of type {config.peft_type.value}, not DSO.")
    return model, processor
