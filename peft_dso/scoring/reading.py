"""What a model can be asked: where its inputs belong, how long they may be, which logits it can leave out."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import torch
from accelerate.utils import extract_model_from_parallel
from torch import nn

from .encode import EncodedQuestion, PicturedQuestion, check_reads_pictures
from .terms import terms_of


def plain_model(model: Any) -> Any:
    """The transformers model within wrappers for several devices, for compilation and for adapters."""
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def input_device(model: nn.Module) -> torch.device:
    """
    Where a model's inputs belong: with its input embeddings, which a device map may part from the first parameter; of
    weights that are offloaded, where accelerate computes with them.
    """
    inner = plain_model(model)
    modules = [module for module in (_input_embeddings(inner), inner) if module is not None]
    for module in modules:
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            device = getattr(one, "execution_device", None)
            if device is not None:
                return torch.device(device)
    for module in modules:
        for parameter in module.parameters():
            if not parameter.is_meta:
                return parameter.device
    return next(model.parameters()).device


def _input_embeddings(inner: Any) -> Optional[nn.Module]:
    try:
        found = inner.get_input_embeddings()
    except (AttributeError, NotImplementedError):
        return None
    return found if isinstance(found, nn.Module) else None


def compute_dtype(model: nn.Module) -> torch.dtype:
    """The dtype that the attention mask must have: the model's own, also when its weights are quantised."""
    dtype = getattr(model, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32


def keeps_logits(model: nn.Module) -> bool:
    """Whether the model's forward can be told to compute some of the logits only."""
    return "logits_to_keep" in inspect.signature(plain_model(model).forward).parameters


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off within the block; afterwards each module is in the mode in which it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def positions_limit(model: nn.Module) -> Optional[int]:
    """
    The longest row that a model has positions for; `None` where these are computed (rotary, ALiBi, a recurrent state)
    and not looked up in a table.
    """
    inner = plain_model(model)
    config: Any = getattr(inner, "config", None)
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    limit = getattr(config, "max_position_embeddings", None)
    if getattr(config, "model_type", None) == "mpt":  # its ALiBi is a table
        return int(config.max_seq_len)
    if not isinstance(limit, int):
        return None
    words = _input_embeddings(inner)
    for module in inner.modules():
        # OPT and BioGPT skip two positions, RoBERTa those up to the padding token.
        if isinstance(module, nn.Embedding) and module is not words:
            if limit <= module.num_embeddings <= limit + 2:
                return limit - _skipped(module, limit)
        elif any(buffer.dim() > 1 and buffer.shape[0] == limit for buffer in module.buffers(recurse=False)):
            return limit  # sinusoids, as of GPT-J
    return None


def _skipped(table: nn.Embedding, limit: int) -> int:
    """How many of the config's positions a table spends on the padding token, which it does not count itself."""
    if table.padding_idx is None or table.num_embeddings > limit:
        return 0
    return int(table.padding_idx) + 1


def check_readable(model: nn.Module, questions: Sequence[EncodedQuestion]) -> None:
    """
    Check that a model can be asked some questions, before any of them is.

    Args:
        model (`nn.Module`): a causal language model, or a vision-language model.
        questions (`Sequence[EncodedQuestion]`): all questions to come; of those with pictures the length is not known.

    Raises:
        ValueError: the model is an encoder-decoder, reads no pictures, has fewer positions than a row has tokens, or
            does not know a token.
    """
    inner = plain_model(model)
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        raise ValueError(
            f"{type(inner).__name__} is an encoder-decoder: it reads the prompt apart from what it says. Give a "
            "causal language model."
        )
    if any(isinstance(question, PicturedQuestion) for question in questions):
        check_reads_pictures(inner)
    limit, known = positions_limit(model), getattr(_input_embeddings(inner), "num_embeddings", None)
    for number, question in enumerate(questions):
        if isinstance(question, PicturedQuestion):
            continue
        places = terms_of(question).places
        length = len(question.prompt) + max(map(len, places))
        if limit is not None and length > limit:
            raise ValueError(
                f"Question {number} has {length} tokens with its longest answer, and {type(inner).__name__} has "
                f"positions for {limit}. Shorten the prompt, or leave the question out."
            )
        largest = max((*question.prompt, *(token for place in places for token in place)))
        if known is not None and largest >= known:
            raise ValueError(
                f"Question {number} has the token {largest}, and {type(inner).__name__} knows {known} tokens: the "
                "tokenizer is not the model's, or tokens were added to it (model.resize_token_embeddings)."
            )
