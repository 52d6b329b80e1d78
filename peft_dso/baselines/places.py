"""
Where in a model the methods act: its blocks, the outputs of its attentions, and what writes into the residual stream.
Found by what a module is and does, not by a list of names per architecture.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..scoring import evaluating
from ..tuner.norms import is_norm, norm_width
from ..tuner.sites import find_sites
from .activations import Text, model_inputs, run_order, watching


def check_bare(model: nn.Module) -> None:
    """
    Raises:
        ValueError: the model has an adapter already, or is no causal language model.
    """
    if any(isinstance(module, BaseTunerLayer) for module in model.modules()):
        raise ValueError(f"{type(model).__name__} has an adapter already. Give the base model without one.")
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{type(model).__name__} is an encoder-decoder model; these methods are for causal models.")


def block_norms(model: nn.Module) -> dict[str, list[str]]:
    """
    The norms that DSO steers, by the block that they stand in.

    Args:
        model (`nn.Module`): a model without adapters.

    Returns:
        `dict[str, list[str]]`: names of norms by name of block, such as `"model.layers.3"`, in the order of the model.
    """
    found: dict[str, list[str]] = {}
    for site in find_sites(model):
        match = re.match(r"(.*?\.\d+)\.", site.name)
        if match:
            found.setdefault(match[1], []).append(site.name)
    return found


def projections(module: nn.Module) -> dict[str, nn.Module]:
    """The linear layers within a module by name (`nn.Linear`, and the `Conv1D` of GPT-2)."""
    return {name: child for name, child in module.named_modules() if isinstance(child, (nn.Linear, Conv1D))}


def width_in(projection: Any) -> int:
    """The number of features that a linear layer reads."""
    return int(projection.nx if isinstance(projection, Conv1D) else projection.in_features)


def width_out(projection: Any) -> int:
    """The number of features that a linear layer writes."""
    return int(projection.nf if isinstance(projection, Conv1D) else projection.out_features)


def hidden_size(model: Any) -> int:
    """The width of the residual stream of the language backbone."""
    config = model.config
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    return int(config.hidden_size)


def attention_outputs(model: Any, text: Text) -> dict[str, str]:
    """
    The projection behind the heads of each block's attention (`o_proj` of a Llama): the last linear layer of the width
    of the residual stream that a module with "attn" or "attention" in its class's name runs.

    Args:
        model (`nn.Module`): a model without adapters.
        text (`Text`): any text, to see what is run.

    Returns:
        `dict[str, str]`: name of the projection by name of block; blocks without attention are left out.

    Raises:
        ValueError: no block has one.
    """
    found: dict[str, str] = {}
    for block in block_norms(model):
        names = [
            name
            for name, module in model.get_submodule(block).named_modules()
            if re.search("attn|attention", type(module).__name__, re.IGNORECASE)
        ]
        inside = {
            f"{block}.{name}.{inner}": layer
            for name in names
            for inner, layer in projections(model.get_submodule(f"{block}.{name}")).items()
            if inner and width_out(layer) == hidden_size(model)
        }
        order = run_order(model, inside, text) if inside else []
        # Where all projections have that width, as queries and keys of an attention without grouped heads have too.
        if order:
            found[block] = order[-1]
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no output projection of its attentions (o_proj) that could be found: no "
            "block holds a module of the kind *Attention* with a linear layer of the model's width. ITI cannot be "
            "fitted."
        )
    return found


@torch.no_grad()
def residual_writer(model: Any, block: str, text: Text) -> str:
    """
    The module of a block whose output is added to the residual stream last: what is added to it is added to the
    block's output, as seen by trying. In a Llama `mlp.down_proj`, in Gemma 2 and 3 the norm behind the MLP.

    It is tried on a copy of the block in float32: in half precision the rounding of a large feature is larger than
    what is added to the others, and the verdict would depend on the type.

    Args:
        model (`nn.Module`): a model without adapters.
        block (`str`): name of the block.
        text (`Text`): any text, to try with.

    Returns:
        `str`: name of a linear layer or a norm.

    Raises:
        ValueError: there is none.
    """
    width, given = hidden_size(model), _block_inputs(model, block, text)
    inside = copy.deepcopy(model.get_submodule(block)).float().eval()
    candidates = {name: m for name, m in projections(inside).items() if width_out(m) == width}
    candidates |= {name: m for name, m in inside.named_modules() if is_norm(m) and norm_width(m) == width}
    order: list[str] = []
    with watching(candidates, lambda name, h: order.append(name)):
        before = _block_output(inside, given)
    shift = torch.linspace(-1, 1, width, device=before.device) * before.abs().mean()
    rounding = 8 * torch.finfo(torch.float32).eps * float(before.abs().max())
    for name in reversed(dict.fromkeys(order)):
        handle = candidates[name].register_forward_hook(_adding(shift))
        change = _block_output(inside, given) - before
        handle.remove()
        if float((change - shift).abs().max()) <= rounding:
            return f"{block}.{name}"
    raise ValueError(
        f"Nothing in {block!r} of {type(model).__name__} writes into the residual stream as a linear layer or a norm "
        "does. Choose variant='norm'."
    )


def _adding(vector: torch.Tensor) -> Callable[..., torch.Tensor]:
    def hook(module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + vector.to(output)

    return hook


def _block_inputs(model: nn.Module, block: str, text: Text) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a block is given when the model reads a text, in float32."""
    seen: list[Any] = []

    def see(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append((_in_float32(args), _in_float32(kwargs)))

    handle = model.get_submodule(block).register_forward_pre_hook(see, with_kwargs=True)
    try:
        with evaluating(model):
            model(**model_inputs(model, [text]))
    finally:
        handle.remove()
    return seen[-1]


def _in_float32(value: Any) -> Any:
    """Copies, because some blocks add to what they are given in place."""
    if isinstance(value, torch.Tensor):
        return value.detach().to(torch.float32 if value.is_floating_point() else value.dtype, copy=True)
    if isinstance(value, dict):
        return {key: _in_float32(item) for key, item in value.items()}
    return type(value)(map(_in_float32, value)) if type(value) in (tuple, list) else value


def _block_output(block: nn.Module, given: tuple[tuple[Any, ...], dict[str, Any]]) -> torch.Tensor:
    args, kwargs = _in_float32(given)
    output = block(*args, **kwargs)
    found: torch.Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return found.float()


def middle_blocks(blocks: Sequence[str], layer: Optional[int] = None) -> list[str]:
    """
    The blocks among which one is chosen: those between 25 % and 75 % of the depth, or the one that is named.

    Args:
        blocks (`Sequence[str]`): names of all blocks.
        layer (`int`, *optional*): index of a block.

    Raises:
        ValueError: there is no such block.
    """
    if layer is None:
        return list(blocks[len(blocks) // 4 : max(len(blocks) // 4 + 1, -(-3 * len(blocks) // 4))])
    if isinstance(layer, bool) or not isinstance(layer, int) or not 0 <= layer < len(blocks):
        raise ValueError(f"layer={layer!r}: the model has the blocks 0 to {len(blocks) - 1}.")
    return [blocks[layer]]
