"""
LinEAS: all maps learned jointly, so that the steered source is distributed as the target is.

    loss = 1 / (d L) sum over sites and features, sum over samples of (sort(T(source)) - sort(target))^2

arXiv 2503.10679, section 3, and github.com/apple/ml-lineas: a sample is the mean over one text's tokens; the target
is read once, unsteered; T starts at the identity. The scale is that of the code (samples are summed, features and
sites averaged), to which its rates belong. After each step at the rate r a proximal one: soft(x, r l1), then group
shrinkage by r l_group sqrt(d), for the slope and the shift of each site apart.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

import torch
from peft import PeftModel

from ..objective import soft_threshold_
from ..questions import OCCUPATIONS, Occupation
from ..scoring import evaluating
from ..tuner import find_sites
from .activations import Text, model_inputs, read_activations, run_order, summary, text_batches, watching
from .adapters import add_pairs, pairs_of
from .contrasts import contrast as contrast_of
from .places import check_bare


# What the original's rates were tuned at: features times sites, and texts per batch.
_TUNED_WIDTH, _TUNED_BATCH = 43_000, 32


def transport_loss(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """
    The part of one site: squared differences of sorted values, summed over the samples and features.

    Args:
        source (`torch.Tensor`): steered, shape `(n, d)`.
        target (`torch.Tensor`): of the same shape.

    Returns:
        `torch.Tensor`: shape `()`.
    """
    return (source.sort(dim=0).values - target.sort(dim=0).values).square().sum()


def steered_summaries(
    model: Any, modules: Mapping[str, Any], texts: Sequence[Text], at: str
) -> dict[str, torch.Tensor]:
    """As [`~peft_dso.baselines.activations.read_activations`], with the gradient and on the model's device."""
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in modules}
    batches = text_batches(texts)
    for batch in batches:
        seen: dict[str, torch.Tensor] = {}
        with watching(modules, seen.__setitem__):
            model(**model_inputs(model, [texts[number] for number in batch]))
        for name, h in seen.items():
            parts[name].append(summary(h, at, len(batch)))
    numbers = [number for batch in batches for number in batch]
    back = torch.tensor(numbers).argsort()
    return {name: torch.cat(found)[back.to(found[0].device)] for name, found in parts.items()}


def joint_loss(
    model: Any,
    modules: Mapping[str, Any],
    source: Sequence[Text],
    target: Mapping[str, torch.Tensor],
    at: str = "mean",
) -> torch.Tensor:
    """
    The loss of a batch, without the regulariser.

    Args:
        model (`PeftModel`): with a DSO adapter.
        modules (`Mapping[str, nn.Module]`): its steered norms by name.
        source (`Sequence[Text]`): n texts to move from.
        target (`Mapping[str, torch.Tensor]`): by name what the norms say, unsteered, to n texts to move to, `(n, d)`.
        at (`str`, defaults to `"mean"`): see [`fit_lineas`].

    Returns:
        `torch.Tensor`: shape `()`.
    """
    steered = steered_summaries(model, modules, source, at)
    features = sum(values.shape[1] for values in steered.values())
    losses = [transport_loss(values, target[name].to(values.device)) for name, values in steered.items()]
    return torch.stack(losses).sum() / features


@torch.no_grad()
def shrink_(parameter: torch.Tensor, rate: float, l1: float, group: float) -> None:
    """The proximal step of one slope or shift, shape `(d,)`, in place: soft(x, rate l1), then group shrinkage."""
    if l1:
        soft_threshold_([parameter], rate * l1)
    if group:
        norm = float(parameter.norm())
        amount = rate * group * math.sqrt(parameter.numel())
        parameter.mul_(max(0.0, 1 - amount / norm) if norm else 0.0)


def fit_lineas(
    model: Any,
    processor: Any,
    questions: Sequence[Mapping[str, Any]],
    *,
    contrast: str = "stereotype",
    at: str = "mean",
    steps: int = 200,
    batch_size: int = 32,
    optimizer: str = "adam",
    learning_rate: Optional[float] = None,
    l1: float = 0.0,
    group: float = 0.0,
    pairs: Optional[int] = 400,
    occupations: Sequence[Occupation] = OCCUPATIONS,
    seed: int = 0,
    progress: Callable[[str], Any] = lambda line: None,
) -> PeftModel:
    """
    Fit LinEAS at all of DSO's sites. Strength 1 is the map that was learned.

    Args:
        model (`PreTrainedModel`): the base model; it is wrapped in place.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        questions (`Sequence[Mapping]`): the ambiguous ones are fitted on.
        contrast (`str`, defaults to `"stereotype"`): see [`~peft_dso.baselines.contrast`]; the source are the negative
            texts, the target the positive ones of the same questions.
        at (`str`, defaults to `"mean"`): a text's value is the `"mean"` over its tokens, or that of its `"last"` one.
        steps (`int`, defaults to 200): of the optimizer. The original takes 1,000, and says that 10,000 overfit.
        batch_size (`int`, defaults to 32): questions per step, 4 at least, drawn anew when all have been seen; all of
            them where there are fewer.
        optimizer (`str`, defaults to `"adam"`): `"adam"` with betas 0.9 and 0.9, or `"sgd"`: the original's
            configuration files have the one, its text the other. Plain steps are in proportion to the activations,
            and leave models whose norms say little (SmolLM2) where they are.
        learning_rate (`float`, *optional*): default 1e-3 for Adam, 0.1 for SGD, which is meant at 43,000 features (all
            sites together) and 32 texts per batch, as the original has them, and scaled with features / batch, to
            which the loss owes its size. Decays as a cosine to 0.1 % of it.
        l1 (`float`, defaults to 0): weight of |x|_1; the original tries 0 to 0.1, and 0 is its main table.
        group (`float`, defaults to 0): weight of the norm of each slope and shift.
        pairs (`int`, *optional*, defaults to 400): pairs of texts at the most.
        occupations (`Sequence[Occupation]`): who knows the majority where the answers do not say a gender.
        seed (`int`, defaults to 0): of the draws.
        progress (`Callable`): gets a line now and then.

    Returns:
        `PeftModel`: with a DSO adapter, in evaluation mode.

    Raises:
        ValueError: a setting is out of range, the model has an adapter already, or the questions cannot show the
            contrast.
        FloatingPointError: the loss is no longer finite.
    """
    if at not in ("mean", "last") or optimizer not in ("adam", "sgd"):
        raise ValueError(f"{at=}, {optimizer=}: choose 'mean' or 'last', and 'adam' or 'sgd'.")
    if steps < 1 or batch_size < 4 or not 0 <= l1 < math.inf or not 0 <= group < math.inf:
        raise ValueError(f"{steps=}, {batch_size=}, {l1=}, {group=}: at least one step of four texts, weights of 0.")
    check_bare(model)
    texts = contrast_of(processor, questions, contrast, pairs=pairs, occupations=occupations, seed=seed)
    batch_size = min(batch_size, len(texts.positive))
    fitted = add_pairs(model, [site.name for site in find_sites(model)])
    modules = {name: fitted.base_model.model.get_submodule(name) for name in pairs_of(fitted)}
    modules = {name: modules[name] for name in run_order(fitted, modules, texts.positive[0])}
    target = read_activations(fitted, modules, texts.positive, at=at)
    parameters = [p for name in modules for p in pairs_of(fitted)[name].parameters()]
    features = sum(values.shape[1] for values in target.values())
    stepper = _optimizer(parameters, optimizer, learning_rate, features / batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(stepper, steps, stepper.param_groups[0]["lr"] * 1e-3)
    batches = _draws(len(texts.positive), batch_size, seed)
    with evaluating(fitted):
        for step in range(steps):
            numbers = next(batches)
            stepper.zero_grad()
            wanted = {name: values[numbers] for name, values in target.items()}
            loss = joint_loss(fitted, modules, [texts.negative[n] for n in numbers], wanted, at)
            if not torch.isfinite(loss):
                raise FloatingPointError(f"The loss is {loss.item()} at step {step}. Lower {learning_rate=}.")
            loss.backward()
            rate = stepper.param_groups[0]["lr"]
            stepper.step()
            for parameter in parameters:
                shrink_(parameter, rate, l1, group)
            schedule.step()
            if step % 10 == 9 or step + 1 == steps:
                progress(f"step {step + 1} of {steps}: loss {loss.item():.4g}")
    fitted.zero_grad()
    return fitted


def _optimizer(
    parameters: Sequence[torch.Tensor], name: str, rate: Optional[float], width: float
) -> torch.optim.Optimizer:
    """The optimizer; `width` is features per text of a batch."""
    if name == "adam":
        return torch.optim.Adam(parameters, lr=1e-3 if rate is None else rate, betas=(0.9, 0.9))
    return torch.optim.SGD(parameters, lr=(0.1 if rate is None else rate) * width / (_TUNED_WIDTH / _TUNED_BATCH))


def _draws(count: int, size: int, seed: int) -> Any:
    """Batches of numbers, without end: all are seen before any is seen again; a rest too small is left out."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        order = torch.randperm(count, generator=generator)
        yield from (order[start : start + size].tolist() for start in range(0, count - size + 1, size))
