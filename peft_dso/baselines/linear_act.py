"""
Linear Activation Transport (Linear-AcT): per feature the straight line that carries the source's values to the
target's.

    slope = sum((s - ms)(t - mt)) / sum((s - ms)^2),    intercept = mt - slope ms,    T(h) = slope h + intercept

arXiv 2410.23054, section 3, and github.com/apple/ml-act: s and t are the n sorted values of the source and of the
target, ms and mt their means. Their strength, (1 - w) h + w T(h), is DSO's with a = slope - 1 and b = intercept.
Incremental: norm by norm in the order of the forward pass, both sets are read with all earlier maps on.

Left out: the original's default moves only values strictly inside the source's [min, max], which is not affine; this
is its `q_all`. For a feature whose source is constant the original divides by noise; here slope 1, intercept mt - ms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import torch
from peft import PeftModel

from ..questions import OCCUPATIONS, Occupation
from ..tuner import find_sites
from .activations import read_activations, run_order
from .adapters import add_pairs, pairs_of, set_pair
from .contrasts import contrast as contrast_of
from .places import check_bare


def transport_map(source: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The pair (a, b) that carries a source to a target: least squares on the sorted values, in float64.

    Args:
        source (`torch.Tensor`): shape `(n, d)`.
        target (`torch.Tensor`): of the same shape.

    Returns:
        a = slope - 1 and b = intercept, each of shape `(d,)`, float64.

    Raises:
        ValueError: the shapes differ, or there are fewer than two values.
    """
    if source.shape != target.shape or source.shape[0] < 2:
        raise ValueError(
            f"Linear-AcT needs as many source as target texts, two at least: got {tuple(source.shape)} and "
            f"{tuple(target.shape)}."
        )
    s, t = source.double().sort(dim=0).values, target.double().sort(dim=0).values
    ms, mt = s.mean(0), t.mean(0)
    spread = (s - ms).square().sum(0)
    # Of values that differ by rounding alone the slope would be noise.
    constant = spread <= s.shape[0] * (1e-7 * (1e-7 + s.abs().amax(0))) ** 2
    slope = ((s - ms) * (t - mt)).sum(0) / spread.where(~constant, torch.ones_like(spread))
    slope = slope.where(~constant, torch.ones_like(slope))
    return slope - 1, mt - slope * ms


def fit_linear_act(
    model: Any,
    processor: Any,
    questions: Sequence[Mapping[str, Any]],
    *,
    contrast: str = "stereotype",
    at: str = "mean",
    incremental: bool = True,
    pairs: Optional[int] = 128,
    occupations: Sequence[Occupation] = OCCUPATIONS,
    seed: int = 0,
    progress: Callable[[str], Any] = lambda line: None,
) -> PeftModel:
    """
    Fit Linear-AcT at all of DSO's sites. Strength 1 is the whole way from the source to the target.

    Args:
        model (`PreTrainedModel`): the base model; it is wrapped in place.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        questions (`Sequence[Mapping]`): the ambiguous ones are fitted on.
        contrast (`str`, defaults to `"stereotype"`): see [`~peft_dso.baselines.contrast`]; the source are the negative
            texts, the target the positive ones.
        at (`str`, defaults to `"mean"`): a text's value is the `"mean"` over its tokens, the start token included (the
            original), or that of its `"last"` token.
        incremental (`bool`, defaults to `True`): read each site with all earlier maps on; `False` reads all once.
        pairs (`int`, *optional*, defaults to 128): pairs of texts at the most. An incremental fit runs all of them
            once per site, as far as that site.
        occupations (`Sequence[Occupation]`): who knows the majority where the answers do not say a gender.
        seed (`int`, defaults to 0): of the draw.
        progress (`Callable`): gets a line for each step.

    Returns:
        `PeftModel`: with a DSO adapter, in evaluation mode.

    Raises:
        ValueError: a setting is unknown, the model has an adapter already, or the questions cannot show the contrast.
    """
    if at not in ("mean", "last"):
        raise ValueError(f"at={at!r}: choose 'mean' or 'last'.")
    check_bare(model)
    texts = contrast_of(processor, questions, contrast, pairs=pairs, occupations=occupations, seed=seed)
    fitted = add_pairs(model, [site.name for site in find_sites(model)])
    affines = pairs_of(fitted)
    # What the norm itself says, before its own pair.
    modules = {name: fitted.base_model.model.get_submodule(name).base_layer for name in affines}
    order = run_order(fitted, modules, texts.positive[0])
    for steps in [[name] for name in order] if incremental else [order]:
        chosen = {name: modules[name] for name in steps}
        source = read_activations(fitted, chosen, texts.negative, at=at)
        target = read_activations(fitted, chosen, texts.positive, at=at)
        for name in steps:
            slope, shift = transport_map(source[name], target[name])
            set_pair(affines[name], slope.float(), shift.float())
        progress(f"fitted {order.index(steps[-1]) + 1} of {len(order)} sites")
    return fitted
