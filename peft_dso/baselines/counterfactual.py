"""
Counterfactual fine-tuning: each ambiguous question with all of its answers, each as likely as the other.

    loss = -sum over groups g of 1/k log p(g | q)  +  retain_coef KL(fitted || base) on unambiguous questions

In one batch, so that the target is the soft one (1/2, 1/2) on the answer; the prompt is masked. Over the whole
vocabulary by default, which drives abstention out; `target="closed"` renormalises over the named answers, as DSO's
reward does. Without the KL on the unambiguous questions it forgets what an answer depends on, as DSO does. (Corpus
CDA, arXiv 1906.04571, which swaps gendered words and keeps both texts, is another method.)

With a LoRA, as such fine-tuning is done; or on DSO's own pairs, which separates "reinforcement or supervision" from
"LoRA or pairs".
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Optional

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, get_cosine_schedule_with_warmup

from ..objective import answers_kl
from ..questions import check_questions, neutral_texts, trainable_groups
from ..scoring import EncodedQuestion, Scores, encode_row, evaluating, first_tokens, reads_tries, score_batch
from ..training.adapter import PairSteps, adapter_layers
from ..training.config import FISHER_RATE, DSOTrainerConfig, cpu_bf16_is_fast
from ..training.objective import PROBE_TEXTS
from ..training.sampler import OccupationSampler
from ..training.units import ScaledSteps, next_token_log_probs
from ..tuner import find_sites, fisher_information, fisher_units
from ..tuner.sites import in_language_backbone
from .adapters import add_pairs
from .places import check_bare, projections


ADAPTERS = ("lora", "pairs")
TARGETS = ("open", "closed")


def counterfactual_loss(log_p: torch.Tensor, group: torch.Tensor, count: int, target: str = "open") -> torch.Tensor:
    """
    Cross entropy to equal shares of the groups.

    Args:
        log_p (`torch.Tensor`): log Pr[answer | prompt], shape `(questions, answers)`, -inf where there is no answer.
        group (`torch.Tensor`): index of each answer's group, of the same shape.
        count (`int`): number of groups k.
        target (`str`, defaults to `"open"`): `"open"`: probabilities over the whole vocabulary; `"closed"`: among the
            named answers.

    Returns:
        `torch.Tensor`: per question, over the groups that its answers mean, shape `(questions,)`.
    """
    if target == "closed":
        log_p = log_p.log_softmax(-1)
    members = torch.nn.functional.one_hot(group, count).bool() & log_p.isfinite()[..., None]  # (questions, answers, k)
    there = members.any(1)
    # -inf would leave NaN in the gradient of a group that no answer means.
    masked = log_p[..., None].masked_fill(~members, torch.finfo(log_p.dtype).min)
    by_group = masked.logsumexp(1).masked_fill(~there, 0.0)
    return -by_group.sum(-1) / there.sum(-1)


def language_projections(model: nn.Module) -> list[str]:
    """
    All linear layers of the language backbone but the output embeddings: of a composite model those inside the model
    that carries the text configuration, so without what projects pictures into it.
    """
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    names = [n for n, m in projections(model).items() if m is not head and in_language_backbone(model, n)]
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if isinstance(config, PreTrainedConfig) else config
    if text is config:
        return names
    backbones = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if name and isinstance(module, PreTrainedModel) and type(module.config) is type(text)
    )
    return [n for n in names if n.startswith(backbones)] if backbones else names


def _add_adapter(model: Any, adapter: str, rank: int, lora_alpha: int, dropout: float) -> PeftModel:
    if adapter == "pairs":
        return add_pairs(model, [site.name for site in find_sites(model)])
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=lora_alpha,
        lora_dropout=dropout,
        target_modules=language_projections(model),
    )
    return get_peft_model(model, config)


def fit_counterfactual(
    model: Any,
    processor: Any,
    questions: Sequence[Mapping[str, Any]],
    *,
    adapter: str = "lora",
    target: str = "open",
    rank: int = 8,
    lora_alpha: int = 16,
    dropout: float = 0.05,
    learning_rate: Optional[float] = None,
    epochs: float = 3.0,
    max_steps: Optional[int] = None,
    batch_size: int = 64,
    questions_per_occupation: int = 8,
    retain_coef: float = DSOTrainerConfig.retain_coef,
    retain_batch_size: int = DSOTrainerConfig.retain_batch_size,
    bf16: Optional[bool] = None,
    seed: int = 0,
    progress: Callable[[str], Any] = lambda line: None,
) -> PeftModel:
    """
    Fine-tune on both answers of each ambiguous question. Strength 1 is what was trained: LoRA's scaling, or DSO's w.

    Args:
        model (`PreTrainedModel`): the base model; it is wrapped in place.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        questions (`Sequence[Mapping]`): the ambiguous ones are trained on, the others hold the model to the base.
        adapter (`str`, defaults to `"lora"`): `"lora"` on all linear layers of the language backbone, or DSO's
            `"pairs"`.
        target (`str`, defaults to `"open"`): see [`counterfactual_loss`].
        rank (`int`, defaults to 8): of the LoRA.
        lora_alpha (`int`, defaults to 16): of the LoRA.
        dropout (`float`, defaults to 0.05): of the LoRA.
        learning_rate (`float`, *optional*): of AdamW; default 2e-4 for a LoRA, 0.028 for pairs, which move in
            units of what they cost, as in DSO's trainer. Warm-up of 10 % and cosine decay.
        epochs (`float`, defaults to 3): over the questions, as often per occupation as the largest has questions.
        max_steps (`int`, *optional*): stop earlier.
        batch_size (`int`, defaults to 64): ambiguous questions per step, whole occupations.
        questions_per_occupation (`int`, defaults to 8): that stand together.
        retain_coef (`float`): weight of the KL to the base on unambiguous questions; default that of DSO's trainer.
        retain_batch_size (`int`): how many of those per step; default as there.
        bf16 (`bool`, *optional*): autocast; default where the machine multiplies in bfloat16 natively, as in
            DSO's trainer.
        seed (`int`, defaults to 0): of the draws and of the LoRA.
        progress (`Callable`): gets a line now and then.

    Returns:
        `PeftModel`: in evaluation mode.

    Raises:
        ValueError: a setting is out of range, the model has an adapter already, or the questions cannot be trained on.
        FloatingPointError: the loss is no longer finite.
    """
    if adapter not in ADAPTERS or target not in TARGETS:
        raise ValueError(f"{adapter=}, {target=}: choose one of {', '.join(ADAPTERS)} and of {', '.join(TARGETS)}.")
    if batch_size < 1 or questions_per_occupation < 1 or batch_size % questions_per_occupation:
        raise ValueError(f"{batch_size=} is no multiple of {questions_per_occupation=}.")
    least = {"max_steps": (max_steps, 1), "retain_coef": (retain_coef, 0), "retain_batch_size": (retain_batch_size, 0)}
    for name, (value, lowest) in least.items():
        if value is not None and not lowest <= value < math.inf:
            raise ValueError(f"{name}={value!r}: a finite number of at least {lowest}.")
    for name, positive in (("epochs", epochs), ("learning_rate", learning_rate)):
        if positive is not None and not 0 < positive < math.inf:
            raise ValueError(f"{name}={positive!r}: a finite number above 0.")
    check_bare(model)
    check_questions(questions)
    rows = [row for row in questions if row.get("right") is None]
    retained = [row for row in questions if row.get("right") is not None] if retain_coef else []
    if not rows:
        raise ValueError("There is no ambiguous question (right=None) to train on.")
    groups = trainable_groups(rows)
    torch.manual_seed(seed)
    fitted = _add_adapter(model, adapter, rank, lora_alpha, dropout)
    encoded = [encode_row(processor, row).answers_only() for row in rows]
    kept = [encode_row(processor, row).answers_only() for row in retained]
    with evaluating(fitted):
        packed = reads_tries(fitted, encoded)

    def loss_of(numbers: Sequence[int], drawn: Sequence[int]) -> torch.Tensor:
        """Of some ambiguous and some retained questions."""
        scores = score_batch(fitted, [encoded[n] for n in numbers] + [kept[n] for n in drawn], packed)
        answers = scores.answers[: len(numbers)]
        group = _groups([rows[n] for n in numbers], groups, answers)
        loss = counterfactual_loss(answers, group, len(groups), target).mean()
        if not drawn:
            return loss
        base = _base_scores(fitted, [kept[n] for n in drawn], packed)
        return loss + retain_coef * answers_kl(scores[len(numbers) :], base).mean()

    sampler = OccupationSampler(
        [row["occupation"] for row in rows],
        questions_per_occupation,
        batch_size,
        pairs=[str(row.get("pair") or number) for number, row in enumerate(rows)],
        seed=seed,
    )
    steps = max(1, math.ceil(epochs * len(sampler) / batch_size))
    steps = steps if max_steps is None else min(steps, max_steps)
    generator = torch.Generator().manual_seed(seed)
    draws = (
        (numbers, torch.randint(len(kept), (retain_batch_size,), generator=generator).tolist() if kept else [])
        for numbers in _batches(sampler, batch_size)
    )
    rate = learning_rate or (2e-4 if adapter == "lora" else FISHER_RATE)
    units = [] if adapter == "lora" else _units(fitted, processor)
    _train(fitted, loss_of, draws, steps, rate, units, _native_bf16() if bf16 is None else bf16, progress)
    return fitted.eval()


def _train(
    fitted: PeftModel,
    loss_of: Callable[[list[int], list[int]], torch.Tensor],
    draws: Iterator[tuple[list[int], list[int]]],
    steps: int,
    rate: float,
    units: list[tuple[nn.Parameter, torch.Tensor]],
    bf16: bool,
    progress: Callable[[str], Any],
) -> None:
    """AdamW without decay, warm-up over a tenth of the steps, then a cosine to 0."""
    optimizer = torch.optim.AdamW([p for p in fitted.parameters() if p.requires_grad], lr=rate, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, round(0.1 * steps), steps)
    device = next(fitted.parameters()).device
    if units:
        ScaledSteps(optimizer, lambda: units)
    fitted.train()
    for step, (numbers, drawn) in zip(range(steps), draws, strict=False):
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = loss_of(numbers, drawn)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"The loss is {loss.item()} at step {step}. Lower learning_rate (now {rate:g}).")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 10 == 9 or step + 1 == steps:
            progress(f"step {step + 1} of {steps}: loss {loss.item():.4g}")
    optimizer.zero_grad()


def _units(fitted: PeftModel, processor: Any) -> list[tuple[nn.Parameter, torch.Tensor]]:
    """Slopes and shifts with their units, those of DSO's trainer."""
    texts = [first_tokens(processor, text, 32) for text in neutral_texts("train")[:PROBE_TEXTS]]
    pairs = PairSteps(adapter_layers(fitted), l1_coef=0.0, l1_until=1.0)
    with evaluating(fitted), fitted.disable_adapter():
        runs = (partial(next_token_log_probs, fitted, text) for text in texts if len(text) > 1)
        pairs.units = fisher_units(fisher_information(pairs.norms, runs))
    return list(pairs.scaled())


def _native_bf16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return cpu_bf16_is_fast()


def _batches(sampler: OccupationSampler, size: int) -> Iterator[list[int]]:
    """The sampler's batches, epoch after epoch."""
    epoch = 0
    while True:
        sampler.set_epoch(epoch)
        order = list(sampler)
        yield from (order[start : start + size] for start in range(0, len(order), size))
        epoch += 1


def _groups(rows: Sequence[Mapping[str, Any]], groups: Sequence[str], like: torch.Tensor) -> torch.Tensor:
    """Index of each answer's group, of the shape of `like`, 0 where there is no answer."""
    group = torch.zeros(*like.shape, dtype=torch.long)
    for i, row in enumerate(rows):
        for j, meaning in enumerate(row["meanings"]):
            group[i, j] = groups.index(meaning)
    return group.to(like.device)


@torch.no_grad()
def _base_scores(fitted: PeftModel, encoded: Sequence[EncodedQuestion], packed: bool) -> Scores:
    """What the base model says."""
    with evaluating(fitted), fitted.disable_adapter():
        return score_batch(fitted, encoded, packed)
