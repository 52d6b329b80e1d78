"""Units of slopes and shifts: how large what they change is, or what changing it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import nn

from .merging import weight_offset
from .norms import norm_width


def shift_unit(norm: nn.Module) -> torch.Tensor:
    """
    The size of a norm's gain per feature: what it multiplies a normalised feature by, and so the typical size of h in
    h' = h + w (a * h + b). A slope is relative to h; a shift in this unit is too.

    Args:
        norm (`nn.Module`): the norm, without an adapter.

    Returns:
        `torch.Tensor`: shape `(d,)`, float32, above 0: |gain|, at least a tenth of its root mean square; 1 for a norm
        without a weight.
    """
    weight: Any = getattr(norm, "weight", None)
    if weight is None:
        return torch.ones(norm_width(norm) or 1)
    if hasattr(weight, "full_tensor"):
        weight = weight.full_tensor()
    try:
        offset = weight_offset(norm)
    except (ValueError, RuntimeError, NotImplementedError):  # a form of its own: its weight is the best guess
        offset = 0.0
    gain = (weight.detach().float() + offset).abs()
    size = gain.square().mean().sqrt()
    return gain.clamp(min=float(0.1 * size)) if size > 0 else torch.ones_like(gain)


@torch.no_grad()
def output_unit(norms: Sequence[nn.Module], run: Callable[[], Any]) -> list[torch.Tensor]:
    """
    How large the outputs of some norms are, measured: the root mean square of h per feature. In a model in which a few
    features carry nearly all of the residual stream the others are far smaller than their gain (Gemma 3: 0.04 of it),
    and a shift in units of the gain moves it a hundred times as far as a slope of the same size.

    Args:
        norms (`Sequence[nn.Module]`): the norms, without an adapter.
        run (`Callable`): runs the model that they are in, on inputs such as those to come.

    Returns:
        `list[torch.Tensor]`: of each norm, shape `(d,)`, float32, at least a tenth of the median over its features;
        [`shift_unit`] for a norm that was not called.
    """
    squares: dict[int, torch.Tensor] = {}
    counts: dict[int, int] = {}

    def note(number: int, h: torch.Tensor) -> None:
        h = h.detach().float().flatten(0, -2)
        squares[number] = squares.get(number, 0.0) + h.square().sum(0)
        counts[number] = counts.get(number, 0) + len(h)

    with _seeing_outputs(norms, note):
        run()
    return [
        _floored((squares[n] / counts[n]).sqrt()) if counts.get(n) else shift_unit(norm)
        for n, norm in enumerate(norms)
    ]


def _floored(size: torch.Tensor) -> torch.Tensor:
    alive = size[size > 0]
    return size.clamp(min=float(0.1 * alive.median())) if len(alive) else torch.ones_like(size)


@torch.enable_grad()
def fisher_information(
    norms: Sequence[nn.Module], runs: Iterable[Callable[[], torch.Tensor]], seed: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """
    What moving a slope or a shift away from zero costs: the diagonal of the Fisher information of the next token,
    F = E[(d log p(y) / d theta)^2] with y drawn from the model itself, so that to second order
    KL(base || steered) = F theta^2 / 2 per token (the importance of a weight in elastic weight consolidation,
    Kirkpatrick et al. 2017, arXiv 1612.00796).

    Args:
        norms (`Sequence[nn.Module]`): the norms, without an adapter.
        runs (`Iterable[Callable]`): each runs the model that they are in on something and returns log-probabilities,
            shape `(tokens, vocabulary)`.
        seed (`int`, defaults to 0): of the draws.

    Returns:
        `list[tuple[torch.Tensor, torch.Tensor]]`: of each norm, for its slope and for its shift, shape `(d,)`,
        float32; zeros for a norm that was not called.
    """
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    tokens: dict[int, int] = {}
    outputs: list[tuple[int, torch.Tensor]] = []
    generator = torch.Generator().manual_seed(seed)

    def note(number: int, h: torch.Tensor) -> torch.Tensor:
        leaf = h if h.requires_grad else h.detach().requires_grad_()
        outputs.append((number, leaf))
        return h if leaf is h else leaf.clone()  # which may be written to, as h may

    for run in runs:
        outputs.clear()
        with _seeing_outputs(norms, note):
            log_p = run()
        drawn = torch.multinomial(log_p.detach().float().exp().cpu(), 1, generator=generator).to(log_p.device)
        # One sum over all tokens: the draws are independent, and cross terms vanish on average.
        gradients = torch.autograd.grad(log_p.gather(-1, drawn).sum(), [h for _, h in outputs], allow_unused=True)
        sums: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        for (number, h), gradient in zip(outputs, gradients, strict=True):
            if gradient is not None:
                g, h = (t.detach().float().flatten(0, -2) for t in (gradient, h))
                slope, shift = sums.get(number, (0.0, 0.0))
                sums[number] = slope + (g * h).sum(0), shift + g.sum(0)
        for number, both in sums.items():
            before = found.get(number, (0.0, 0.0))
            found[number] = before[0] + both[0].square(), before[1] + both[1].square()
            tokens[number] = tokens.get(number, 0) + len(log_p)
    return [
        (found[n][0] / tokens[n], found[n][1] / tokens[n]) if n in found else (torch.zeros(norm_width(norm) or 1),) * 2
        for n, norm in enumerate(norms)
    ]


def fisher_units(
    information: Sequence[tuple[torch.Tensor, torch.Tensor]], damping: float = 0.3
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """
    Units in which a step costs the same in every entry: 1 / sqrt(N F / 2), N the number of all entries. Moving all of
    them by r units, in directions that have nothing to do with each other, costs r^2 nats of KL per token, whatever
    the model.

    Args:
        information (`Sequence[tuple[torch.Tensor, torch.Tensor]]`): of each norm, see [`fisher_information`].
        damping (`float`, defaults to 0.3): an entry counts as if it cost at least this share of the root mean square
            of its vector's, squared, on top: no entry is moved far because the texts did not show what it does.

    Returns:
        `list[tuple[torch.Tensor, torch.Tensor]]`: of the same shapes, above 0. A vector that was seen to cost nothing
        gets the median unit of the others of its kind, 1 where there is none.
    """
    count = sum(f.numel() for both in information for f in both)
    kinds = []
    for kind in zip(*information, strict=True):
        units = [(2 / (count * (f + damping**2 * f.mean()))).sqrt() for f in kind]
        known = torch.cat(units)
        known = known[known.isfinite()]
        usual = known.median() if len(known) else known.new_ones(())
        kinds.append([torch.where(unit.isfinite(), unit, usual) for unit in units])
    return list(zip(*kinds, strict=True))


def _seeing_outputs(norms: Sequence[nn.Module], see: Callable[[int, torch.Tensor], Any]) -> ExitStack:
    """While it is open, `see` gets the number and the output of each norm that is called, and may replace it."""
    stack = ExitStack()
    for number, norm in enumerate(norms):
        handle = norm.register_forward_hook(lambda norm, inputs, h, number=number: see(number, h))
        stack.callback(handle.remove)
    return stack
