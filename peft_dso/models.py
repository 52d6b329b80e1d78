"""A base model with its tokenizer or processor, as the command line loads it."""

from __future__ import annotations

from typing import Any, Optional

from peft import PeftModel
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


SMOLLM2 = "smollm2"


def load_base(name: str, dtype: str = "float32", revision: Optional[str] = None) -> tuple[PreTrainedModel, Any]:
    """
    Load a base model.

    Args:
        name (`str`): a folder or a name on the Hub; `"smollm2"` is the model of the quick start.
        dtype (`str`, defaults to `"float32"`): such as `"bfloat16"` or `"auto"`.
        revision (`str`, *optional*): branch, tag or commit.

    Returns:
        The model in evaluation mode, and its tokenizer, padding on the left, or the processor of a vision-language
        model.

    Raises:
        OSError: there is no such model.
    """
    folder = str(smollm2_folder()) if name == SMOLLM2 else name
    config = AutoConfig.from_pretrained(folder, revision=revision)
    if config.model_type in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype, revision=revision)
        return model.eval(), AutoProcessor.from_pretrained(folder, revision=revision)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, revision=revision)
    return model.eval(), AutoTokenizer.from_pretrained(folder, padding_side="left", revision=revision)


def load_steered(name: str, adapter: str, dtype: str = "float32", revision: Optional[str] = None) -> tuple[Any, Any]:
    """
    Load a base model with a DSO adapter.

    Args:
        name (`str`): see [`load_base`].
        adapter (`str`): a folder or a name on the Hub.
        dtype (`str`, defaults to `"float32"`): see [`load_base`].
        revision (`str`, *optional*): of the adapter.

    Returns:
        The `PeftModel` in evaluation mode, and the tokenizer or processor.

    Raises:
        OSError: there is no such model.
        ValueError: there is no such adapter, or it does not fit.
    """
    model, processor = load_base(name, dtype)
    return PeftModel.from_pretrained(model, adapter, revision=revision).eval(), processor
