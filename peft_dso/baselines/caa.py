"""
Contrastive Activation Addition (CAA): add the mean difference of the activations of two kinds of texts.

    v = mean over pairs of (h(positive) - h(negative)),    h' = h + w v

arXiv 2312.06681, section 3, and github.com/nrimsky/CAA: h is the output of one block at the answer's token, v is not
scaled to unit length, and w, the multiplier, goes from -2 to 2. Originally v is added from the last prompt token on;
here at every token, prompt included, as DSO's pairs act.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import torch
from peft import PeftModel
from torch import nn

from ..questions import OCCUPATIONS, Occupation
from ..tuner.norms import is_norm
from .activations import read_activations
from .adapters import add_output_biases, add_pairs, pairs_of, set_output_biases, set_pair
from .contrasts import Contrast
from .contrasts import contrast as contrast_of
from .places import block_norms, check_bare, middle_blocks, residual_writer
from .validation import fit_and_validation, validate


VARIANTS = ("norm", "residual")


def difference_vectors(model: nn.Module, modules: Mapping[str, nn.Module], texts: Contrast) -> dict[str, torch.Tensor]:
    """
    v of each module: the mean over the pairs of positive less negative, at the last token of each text.

    Args:
        model (`nn.Module`): the model.
        modules (`Mapping[str, nn.Module]`): modules of it by name.
        texts (`Contrast`): the pairs.

    Returns:
        `dict[str, torch.Tensor]`: by name, shape `(d,)`, float32.
    """
    positive = read_activations(model, modules, texts.positive)
    negative = read_activations(model, modules, texts.negative)
    return {name: (positive[name].double() - negative[name].double()).mean(0).float() for name in positive}


def fit_caa(
    model: Any,
    processor: Any,
    questions: Sequence[Mapping[str, Any]],
    *,
    validation: Optional[Sequence[Mapping[str, Any]]] = None,
    variant: str = "norm",
    contrast: str = "stereotype",
    layer: Optional[int] = None,
    pairs: Optional[int] = 400,
    occupations: Sequence[Occupation] = OCCUPATIONS,
    seed: int = 0,
    progress: Callable[[str], Any] = lambda line: None,
) -> PeftModel:
    """
    Fit CAA. Strength 1 is the vector as it was read; the method's own range of multipliers is -2 to 2.

    Args:
        model (`PreTrainedModel`): the base model; it is wrapped in place.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        questions (`Sequence[Mapping]`): the ambiguous ones are fitted on.
        validation (`Sequence[Mapping]`, *optional*): to choose the layer by; default one occupation in five of
            `questions`, which is then not fitted on.
        variant (`str`, defaults to `"norm"`): `"norm"` reads and adds at the norms of one block, as DSO's pairs with
            a = 0 and b = v, which reaches one sublayer each, and the residual stream where norms write it (Gemma 2
            and 3). `"residual"` reads the output of one block and adds to it, the original place, which all later
            blocks read: as a pair where a norm writes it, or else as a stock LoRA that is nothing but a bias.
        contrast (`str`, defaults to `"stereotype"`): see [`~peft_dso.baselines.contrast`].
        layer (`int`, *optional*): index of the block; default the one between 25 % and 75 % of the depth that
            validates best at strength 1 (see [`~peft_dso.baselines.Validation`]). All at once would count the shift
            many times (arXiv 2503.10679).
        pairs (`int`, *optional*, defaults to 400): pairs of texts at the most (the original's number).
        occupations (`Sequence[Occupation]`): who knows the majority where the answers do not say a gender.
        seed (`int`, defaults to 0): of the draws.
        progress (`Callable`): gets a line for each step.

    Returns:
        `PeftModel`: with the fitted adapter, in evaluation mode.

    Raises:
        ValueError: a setting is unknown, the model has an adapter already, or the questions cannot show the contrast.
    """
    if variant not in VARIANTS:
        raise ValueError(f"variant={variant!r}: choose one of {', '.join(VARIANTS)}.")
    check_bare(model)
    norms = block_norms(model)
    blocks = middle_blocks(list(norms), layer)
    held: Sequence[Mapping[str, Any]] = ()
    if len(blocks) > 1:
        questions, held = fit_and_validation(questions, validation, seed)
    texts = contrast_of(processor, questions, contrast, pairs=pairs, occupations=occupations, seed=seed)
    progress(f"reading {2 * len(texts.positive)} texts at {len(blocks)} blocks")
    if variant == "norm":
        sites = {name: model.get_submodule(name) for block in blocks for name in norms[block]}
        vectors = difference_vectors(model, sites, texts)
        candidates = [{name: vectors[name] for name in norms[block] if name in vectors} for block in blocks]
    else:
        vectors = difference_vectors(model, {block: model.get_submodule(block) for block in blocks}, texts)
        candidates = [{residual_writer(model, block, texts.positive[0]): vectors[block]} for block in blocks]
    chosen = candidates[0] if len(blocks) == 1 else _choose(model, processor, candidates, blocks, held, progress)
    return _with_vectors(model, chosen)[0]


def _with_vectors(model: Any, vectors: Mapping[str, torch.Tensor]) -> tuple[PeftModel, Callable[..., None]]:
    """The model with vectors added at modules, and what writes others in their place."""
    if all(is_norm(model.get_submodule(name)) for name in vectors):
        fitted = add_pairs(model, list(vectors))

        def write(values: Mapping[str, torch.Tensor]) -> None:
            for name, affine in pairs_of(fitted).items():
                set_pair(affine, shift=values.get(name))

    else:
        fitted = add_output_biases(model, vectors)

        def write(values: Mapping[str, torch.Tensor]) -> None:
            set_output_biases(fitted, values)

    write(vectors)
    return fitted, write


def _choose(
    model: Any,
    processor: Any,
    candidates: Sequence[Mapping[str, torch.Tensor]],
    names: Sequence[str],
    validation: Sequence[Mapping[str, Any]],
    progress: Callable[[str], Any],
) -> Mapping[str, torch.Tensor]:
    """The candidate that validates best; the model is bare again afterwards."""
    fitted, write = _with_vectors(model, {name: v for candidate in candidates for name, v in candidate.items()})
    write({})
    base = validate(fitted, processor, validation)
    costs = []
    for name, candidate in zip(names, candidates, strict=True):
        write(candidate)
        found = validate(fitted, processor, validation)
        costs.append(found.cost(base))
        progress(f"{name}: bias {found.bias:.3f}, accuracy {found.accuracy:.3f}, answers' mass {found.mass:.3f}")
    fitted.unload()
    best = costs.index(min(costs))
    progress(f"chose {names[best]}")
    return candidates[best]
