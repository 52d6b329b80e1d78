"""
Inference-Time Intervention (ITI): shift the outputs of the attention heads in which the two kinds of texts differ
most.

    x_h' = x_h + alpha sigma_h theta_h    for the K heads h that tell the kinds apart best

arXiv 2306.03341, section 4, and github.com/likenneth/honest_llama. x_h is what head h gives to the output projection
W_o; theta_h the mean of the positive less the mean of the negative texts, of unit length; sigma_h the standard
deviation of all activations along theta_h (of n, not n - 1). Since W_o (x + delta) = W_o x + W_o delta, the shift is
a bias of the projection. Originally it acts from the last prompt token on; here at every token, prompt included, as
DSO's pairs act.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import torch
from peft import PeftModel
from transformers.pytorch_utils import Conv1D

from ..questions import OCCUPATIONS, Occupation
from .activations import read_activations
from .adapters import add_output_biases
from .contrasts import contrast as contrast_of
from .places import attention_outputs, check_bare, width_in


def fit_iti(
    model: Any,
    processor: Any,
    questions: Sequence[Mapping[str, Any]],
    *,
    contrast: str = "stereotype",
    alpha: float = 15.0,
    heads: Optional[int] = None,
    pairs: Optional[int] = 400,
    occupations: Sequence[Occupation] = OCCUPATIONS,
    seed: int = 0,
    progress: Callable[[str], Any] = lambda line: None,
) -> PeftModel:
    """
    Fit ITI. Strength 1 is `alpha`; the method's own range of alpha is 0 to 20. Of heads whose probes are right equally
    often the first count as better. On few texts many are: which are taken is chance then, and decides much.

    Args:
        model (`PreTrainedModel`): the base model; it is wrapped in place.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        questions (`Sequence[Mapping]`): the ambiguous ones are fitted on. Probes learn from four occupations in five,
            and the heads are ranked by their accuracy on the others.
        contrast (`str`, defaults to `"stereotype"`): see [`~peft_dso.baselines.contrast`].
        alpha (`float`, defaults to 15): how many standard deviations to shift, at strength 1.
        heads (`int`, *optional*): K; default 4.7 % of the heads, the original's 48 of 1,024.
        pairs (`int`, *optional*, defaults to 400): pairs of texts at the most.
        occupations (`Sequence[Occupation]`): who knows the majority where the answers do not say a gender.
        seed (`int`, defaults to 0): of the draws.
        progress (`Callable`): gets a line for each step.

    Returns:
        `PeftModel`: a stock LoRA that is nothing but biases of output projections, in evaluation mode.

    Raises:
        ImportError: scikit-learn is missing.
        ValueError: the model has no output projection behind its heads, the number of heads is out of range, or the
            questions cannot show the contrast.
    """
    if not math.isfinite(alpha):
        raise ValueError(f"alpha={alpha!r}: a finite number of standard deviations.")
    check_bare(model)
    texts = contrast_of(processor, questions, contrast, pairs=pairs, occupations=occupations, seed=seed)
    held = probe_split(texts.occupations, texts.types, seed)
    modules = {name: model.get_submodule(name) for name in attention_outputs(model, texts.positive[0]).values()}
    count = head_count(model, modules)
    total = len(modules) * count
    chosen = max(1, round(48 / 1024 * total)) if heads is None else heads
    if isinstance(chosen, bool) or not isinstance(chosen, int) or not 1 <= chosen <= total:
        raise ValueError(f"heads={heads!r}: the model has {total} heads in all.")
    progress(f"reading {2 * len(texts.positive)} texts at {total} heads")
    positive = read_activations(model, modules, texts.positive, side="input")
    negative = read_activations(model, modules, texts.negative, side="input")
    # Both answers of a question stand on one side: (2 n, layers, heads, head size)
    x = torch.stack([torch.cat([positive[name], negative[name]]) for name in modules], 1).unflatten(-1, (count, -1))
    labels = torch.tensor([1] * len(texts.positive) + [0] * len(texts.negative))
    accuracies = probe_accuracies(x, labels, torch.tensor(held + held))
    ranked = sorted(accuracies, key=lambda place: (-accuracies[place], place))[:chosen]
    last = accuracies[ranked[-1]]
    alike = sum(accuracy == last for accuracy in accuracies.values())
    progress(
        f"chose {chosen} heads, probes right on {last:.2f} to {accuracies[ranked[0]]:.2f}; "
        f"{alike} heads are alike at {last:.2f}, of which the first are taken"
    )
    biases: dict[str, torch.Tensor] = {}
    for layer, head in ranked:
        name = list(modules)[layer]
        delta = torch.zeros(count, x.shape[-1])
        delta[head] = alpha * head_shift(x[:, layer, head], labels)
        added = projected(modules[name], delta.flatten())
        biases[name] = biases.get(name, torch.zeros_like(added)) + added
    return add_output_biases(model, biases)


def head_count(model: Any, modules: Mapping[str, Any]) -> int:
    """
    Query heads per block.

    Raises:
        ValueError: the input of a projection is not made of that many heads of one size.
    """
    config = model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    count = getattr(config, "num_attention_heads", None)
    widths = {name: width_in(module) for name, module in modules.items()}
    if not count or len(set(widths.values())) > 1 or next(iter(widths.values())) % count:
        raise ValueError(
            f"{type(model).__name__}: {count!r} heads do not divide what the output projections read: {widths}. ITI "
            "cannot be fitted."
        )
    return int(count)


def probe_split(occupations: Sequence[str], types: Sequence[str], seed: int) -> list[bool]:
    """
    Which texts the probes are judged on: those about one occupation in five of either majority.

    Args:
        occupations (`Sequence[str]`): whom each pair is about.
        types (`Sequence[str]`): the majority of each.
        seed (`int`): of the draw.

    Returns:
        `list[bool]`: one per pair.

    Raises:
        ValueError: a majority has one occupation only, so that none can be held out.
    """
    rng = random.Random(seed)
    held: set[str] = set()
    for kind in sorted(set(types)):
        names = sorted({name for name, of in zip(occupations, types, strict=True) if of == kind})
        if len(names) < 2:
            raise ValueError(
                f"There is one {kind or 'only'} occupation, {names[0]!r}: ITI needs two of each majority, to fit its "
                "probes and to judge them."
            )
        held |= set(rng.sample(names, max(1, round(len(names) / 5))))
    return [name in held for name in occupations]


def probe_accuracies(x: torch.Tensor, labels: torch.Tensor, held: torch.Tensor) -> dict[tuple[int, int], float]:
    """
    How well a logistic probe (L2, C = 1, at most 1,000 iterations) on each head tells the labels apart.

    Args:
        x (`torch.Tensor`): activations, shape `(texts, layers, heads, head size)`.
        labels (`torch.Tensor`): 1 or 0, shape `(texts,)`.
        held (`torch.Tensor`): bool, shape `(texts,)`: what the probes are judged on.

    Returns:
        `dict[tuple[int, int], float]`: accuracy on the held texts by layer and head.

    Raises:
        ImportError: scikit-learn is missing.
    """
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise ImportError("ITI's probes need scikit-learn: pip install 'peft_dso[baselines]'") from None
    found = {}
    for layer in range(x.shape[1]):
        for head in range(x.shape[2]):
            values = x[:, layer, head].double().numpy()
            probe = LogisticRegression(C=1.0, max_iter=1000).fit(values[~held], labels[~held])
            found[layer, head] = float(probe.score(values[held], labels[held]))
    return found


def head_shift(x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    sigma theta of one head, over all texts.

    Args:
        x (`torch.Tensor`): activations, shape `(texts, head size)`.
        labels (`torch.Tensor`): 1 or 0, shape `(texts,)`.

    Returns:
        `torch.Tensor`: shape `(head size,)`.
    """
    x = x.double()
    theta = x[labels == 1].mean(0) - x[labels == 0].mean(0)
    theta = theta / theta.norm().clamp(min=torch.finfo(theta.dtype).tiny)
    return ((x @ theta).std(unbiased=False) * theta).float()


@torch.no_grad()
def projected(projection: Any, delta: torch.Tensor) -> torch.Tensor:
    """W_o delta, without the projection's own bias: shape `(out,)`, float32 on the CPU."""
    weight = projection.weight
    # Quantised, to integers or to float8 with a scale of its own: what the layer itself makes of it.
    if not weight.is_floating_point() or weight.element_size() == 1:
        at_zero, at_delta = projection(torch.stack([torch.zeros_like(delta), delta]).to(weight.device))
        return (at_delta - at_zero).float().cpu()
    weight = weight.detach().float().cpu()
    return delta @ weight if isinstance(projection, Conv1D) else weight @ delta
