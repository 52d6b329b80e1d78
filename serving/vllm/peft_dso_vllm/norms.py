"""Steers norms in place: a loaded norm's class becomes a subclass of itself that adds the pairs of all slots."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import nn

from .batch import Strengths


class SteeredNorm(nn.Module):
    """
    What a steered norm's class gains: its output h becomes h + sum_k w_k (a_k h + b_k) over the slots k
    (DSO, arXiv 2512.15926, section 3), with a strength w_k per token.

    Attributes:
        dso_slopes (`torch.Tensor`): a, shape `(slots, d)`, float32.
        dso_shifts (`torch.Tensor`): b, shape `(slots, d)`, float32.
        dso_strengths (`torch.Tensor`): w, shape `(tokens, slots)`, float32: one tensor for all norms of the model.
        dso_eager (`Strengths` or `None`): tells whether anybody is steered, where every forward pass runs this code.
            `None` where graphs are made of it: a captured graph would freeze the answer.
    """

    dso_slopes: torch.Tensor
    dso_shifts: torch.Tensor
    dso_strengths: torch.Tensor
    dso_eager: Strengths | None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        # With a residual, vLLM's norms return (normed, sum): the residual stream itself is not steered.
        self._steer(output[0] if isinstance(output, tuple) else output)
        return output

    def _steer(self, h: torch.Tensor) -> None:
        """
        Steer an output in place: it is the norm's own tensor, and on CPUs a new one would cost page faults.

        Args:
            h (`torch.Tensor`): shape `(tokens, d)` or `(1, tokens, d)`.
        """
        if self.dso_eager is not None and self.dso_eager.idle:
            return
        strengths = self.dso_strengths.narrow(0, 0, h.shape[-2])
        slots = self.dso_slopes.shape[0]
        delta = torch.addcmul(self.dso_shifts[0], h, self.dso_slopes[0])
        if slots > 1:
            # All deltas are those of the unsteered h, as when PEFT has several adapters active.
            delta = delta * strengths[:, 0:1]
            for k in range(1, slots):
                other = torch.addcmul(self.dso_shifts[k], h, self.dso_slopes[k])
                delta = torch.addcmul(delta, other, strengths[:, k : k + 1])
            h.add_(delta)
        else:
            h.addcmul_(delta, strengths)


@cache
def steered_class(norm_class: type) -> type:
    """
    The subclass that a norm's class is replaced by: names of parameters, `isinstance` and the methods stay.

    `forward` is overridden, not `forward_cuda` and its like: `CustomOp` binds those when a norm is made
    (model_executor/custom_op.py).
    """
    return type(f"Steered{norm_class.__name__}", (SteeredNorm, norm_class), {"__module__": norm_class.__module__})


def norm_width(module: Any) -> int | None:
    """
    The number of features of a norm over the last dimension; `None` for another module. The same test as the
    package's `is_norm` ("norm" in the class name, one vector as weight and perhaps one as bias, no children), on
    vLLM's classes.
    """
    if "norm" not in type(module).__name__.lower() or next(module.children(), None) is not None:
        return None
    if isinstance(module, nn.modules.batchnorm._NormBase | nn.GroupNorm):
        return None
    vectors = [module.weight] if isinstance(getattr(module, "weight", None), torch.Tensor) else []
    vectors += [p for name, p in module.named_parameters(recurse=False) if name not in ("weight",)]
    if vectors:
        return int(vectors[0].shape[0]) if all(v.dim() == 1 for v in vectors) else None
    shape = getattr(module, "normalized_shape", None) or getattr(module, "hidden_size", None)
    shape = (shape,) if isinstance(shape, int) else shape
    return int(shape[0]) if shape is not None and len(shape) == 1 else None


def block_norms(model: nn.Module, width: int) -> dict[str, nn.Module]:
    """
    The norms on the residual stream of a model's blocks: what `peft_dso` steers by default and counts as `num_sites`.

    Args:
        model (`nn.Module`): the language backbone as vLLM has built it.
        width (`int`): the hidden size; query and key norms have another one.

    Returns:
        `dict[str, nn.Module]`: norms by name; blocks that another pipeline rank has are missing.
    """
    return {
        name: module
        for name, module in model.named_modules()
        if norm_width(module) == width
        and any(part.isdecimal() for part in name.split("."))
        and name.rsplit(".", 1)[-1] not in ("q_norm", "k_norm", "q_layernorm", "k_layernorm")
    }


def install_norm(norm: nn.Module, slots: int, strengths: Strengths, eager: bool) -> None:
    """
    Make a norm steerable; its pairs are zero until [`load_slot`].

    Args:
        norm (`nn.Module`): a norm that stays where it is.
        slots (`int`): the number of adapters that it has room for.
        strengths (`Strengths`): shared by all norms and written before each forward pass. Its buffer is never
            reassigned: graphs hold its address.
        eager (`bool`): whether no graph is made of the model's forward passes.
    """
    width = norm_width(norm)
    for name in ("dso_slopes", "dso_shifts"):
        zeros = torch.zeros(slots, width or 0, dtype=torch.float32, device=strengths.buffer.device)
        # Buffers, since sleep mode saves nothing else; not persistent, since they belong to no checkpoint.
        norm.register_buffer(name, zeros, persistent=False)
    norm.register_buffer("dso_strengths", strengths.buffer, persistent=False)
    norm.dso_eager = strengths if eager else None  # type: ignore[assignment]
    norm.__class__ = steered_class(type(norm))  # type: ignore[arg-type]  # a class can be hashed


@torch.no_grad()
def load_slot(norms: dict[str, Any], slot: int, vectors: dict[str, dict[str, torch.Tensor]]) -> None:
    """
    Put an adapter into a slot, in place.

    Args:
        norms (`dict[str, nn.Module]`): all steerable norms by name.
        slot (`int`): which slot; what it held is gone, also at norms that the adapter does not steer.
        vectors (`dict[str, dict[str, torch.Tensor]]`): "slope" and "shift" by name of the norm, shape `(d,)`.
    """
    for name, norm in norms.items():
        pair = vectors.get(name, {})
        for buffer, vector in ((norm.dso_slopes, "slope"), (norm.dso_shifts, "shift")):
            buffer[slot].copy_(pair[vector]) if vector in pair else buffer[slot].zero_()
