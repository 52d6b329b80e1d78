"""Bias, ability and KL of a steered model over a range of strengths."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
import torch
from torch import nn

from .. import metrics
from ..metrics import Measure
from ..penalties import kl_divergence
from ..questions import check_questions
from ..scoring import EncodedQuestion, encode_question, reads_tries, score
from ..tuner import steering_strength


@dataclass
class StrengthResult:
    """
    What was measured at one strength.

    Args:
        strength (`float`): the strength w.
        measures (`dict[str, Measure]`): by name:
            `bias` and `bias_first_choice` (per-occupation bias, from probabilities and from first choices), `gap` and
            `gap_first_choice` (signed), `abstention` (probability of anything but the named answers), `kl` (to the
            base, in nats, where the answer is decided), all on ambiguous questions;
            `accuracy` (the right answer is the likelier), `right` (probability of the right answer among the named
            ones), `right_of_all` (its probability among all continuations) and `kl_unambiguous`, on unambiguous ones.
            Those for which there is no question are left out.
        noise_floor (`float`): the `bias` that a fair model would show on these questions.
        noise_floor_first_choice (`float`): the same for `bias_first_choice`.
        occupations (`dict[str, float]`): Pr[pro | o] - Pr[anti | o] of each occupation, from probabilities.
    """

    strength: float
    measures: dict[str, Measure]
    noise_floor: float = float("nan")
    noise_floor_first_choice: float = float("nan")
    occupations: dict[str, float] = field(default_factory=dict)


@dataclass
class Report:
    """
    Results over the strengths, per set of questions.

    Args:
        sets (`dict[str, list[StrengthResult]]`): by name of the set, such as `"test"`; in the order of the strengths.
        description (`dict[str, Any]`): what was measured: model, adapter, counts of questions.
    """

    sets: dict[str, list[StrengthResult]]
    description: dict[str, Any] = field(default_factory=dict)


def _shares(log_probs: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Pro and anti among the named answers, shape `(questions, 2)`."""
    p = np.exp(log_probs - log_probs.max(axis=1, keepdims=True))
    by_status = np.zeros((len(rows), 2))
    for i, row in enumerate(rows):
        for j, meaning in enumerate(row["meanings"]):
            if meaning not in ("pro", "anti"):
                raise ValueError(f"Question {i}: the meaning {meaning!r} is neither 'pro' nor 'anti'.")
            by_status[i, int(meaning == "anti")] += p[i, j]
    return by_status / by_status.sum(axis=1, keepdims=True)


def _first_choices(shares: np.ndarray) -> np.ndarray:
    """1 for the likelier of pro and anti and 0 for the other; a tie is shared."""
    chosen = (shares == shares.max(axis=1, keepdims=True)).astype(float)
    return chosen / chosen.sum(axis=1, keepdims=True)


def measure(
    model: nn.Module,
    rows: Sequence[Mapping[str, Any]],
    encoded: Sequence[EncodedQuestion],
    strength: float,
    base: Optional[torch.Tensor] = None,
    packed: Optional[bool] = None,
    seed: int = 0,
    progress: Callable[[int], Any] = lambda n: None,
) -> tuple[StrengthResult, torch.Tensor]:
    """
    Measure a model as it is set now.

    Args:
        model (`nn.Module`): a causal language model.
        rows (`Sequence[Mapping]`): questions with answers that are pro or anti.
        encoded (`Sequence[EncodedQuestion]`): their tokens.
        strength (`float`): what to note as the strength; it is not set here.
        base (`torch.Tensor`, *optional*): the base's log-probabilities where each answer is decided, shape
            `(questions, vocabulary)`; without it no KL is measured.
        packed (`bool`, *optional*): see [`~peft_dso.scoring.score`].
        seed (`int`, defaults to 0): of the bootstraps.
        progress (`Callable`): called with the number of questions done.

    Returns:
        The result, and the decisions' log-probabilities (float32, on the CPU) if `base` is `None`, else an empty
        tensor.
    """
    widest = max(len(question.answers) for question in encoded)
    log_probs = np.full((len(rows), widest), -np.inf)
    kl = np.full(len(rows), np.nan)
    decisions: list[Optional[torch.Tensor]] = [None] * len(rows)
    for numbers, scores in score(model, encoded, packed=packed):
        log_probs[numbers, : scores.answers.shape[1]] = scores.answers.double().cpu().numpy()
        decided = scores.decision.cpu()
        if base is not None:
            kl[numbers] = kl_divergence(decided, base[numbers]).numpy()
        else:
            for number, row in zip(numbers, decided):
                decisions[number] = row.clone()
        progress(len(numbers))

    measures: dict[str, Measure] = {}
    result = StrengthResult(strength, measures)
    right = np.array([-1 if row.get("right") is None else row["right"] for row in rows])
    shares = _shares(log_probs, rows)

    def part(mask: np.ndarray) -> tuple[list[int], list[str], list[str]]:
        chosen = np.flatnonzero(mask).tolist()
        pairs = [str(rows[i].get("pair") or i) for i in chosen]
        return chosen, [rows[i]["occupation"] for i in chosen], pairs

    chosen, occupations, pairs = part(right < 0)
    if len(chosen):
        s = shares[chosen]
        first = _first_choices(s)
        measures["bias"] = metrics.per_occupation_bias(s, occupations, pairs, seed)
        measures["bias_first_choice"] = metrics.per_occupation_bias(first, occupations, pairs, seed)
        measures["gap"] = metrics.stereotype_gap(s, pairs, seed)
        measures["gap_first_choice"] = metrics.stereotype_gap(first, pairs, seed)
        measures["abstention"] = metrics.mean(1 - np.exp(log_probs[chosen]).sum(axis=1), pairs, seed)
        if base is not None:
            measures["kl"] = metrics.mean(kl[chosen], pairs, seed)
        result.noise_floor = metrics.noise_floor(s, occupations, pairs, seed)
        result.noise_floor_first_choice = metrics.noise_floor(first, occupations, pairs, seed)
        result.occupations = metrics.occupation_biases(s, occupations)
    chosen, _, pairs = part(right >= 0)
    if len(chosen):
        of_all = np.exp(log_probs[chosen, right[chosen]])
        named = np.exp(log_probs[chosen])
        measures["accuracy"] = metrics.mean(log_probs[chosen].argmax(axis=1) == right[chosen], pairs, seed)
        measures["right"] = metrics.mean(of_all / named.sum(axis=1), pairs, seed)
        measures["right_of_all"] = metrics.mean(of_all, pairs, seed)
        if base is not None:
            measures["kl_unambiguous"] = metrics.mean(kl[chosen], pairs, seed)
    return result, torch.empty(0) if base is not None else torch.stack([d for d in decisions if d is not None])


def sweep(
    model: nn.Module,
    tokenizer: Any,
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
    strengths: Sequence[float] = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
    *,
    seed: int = 0,
    progress: bool = False,
    description: Optional[Mapping[str, Any]] = None,
) -> Report:
    """
    Measure a steered model at several strengths, against itself at strength 0.

    Args:
        model (`nn.Module`): a model with an active DSO adapter; its strength is restored afterwards.
        tokenizer (`PreTrainedTokenizerBase`): its tokenizer.
        questions (`Mapping[str, Sequence[Mapping]]`): sets of questions by name, with pro and anti answers.
        strengths (`Sequence[float]`): the strengths, in the order of the report.
        seed (`int`, defaults to 0): of the bootstraps.
        progress (`bool`, defaults to `False`): show a progress bar.
        description (`Mapping[str, Any]`, *optional*): what to note in the report.

    Returns:
        `Report`: the results.

    Raises:
        ValueError: a question is wrong, there is no set, or no strength.
    """
    if not questions or not strengths:
        raise ValueError(f"Nothing to measure: {len(questions)} sets of questions, {len(strengths)} strengths.")
    encoded: dict[str, list[EncodedQuestion]] = {}
    for name, rows in questions.items():
        check_questions(rows, ("pro", "anti"))
        encoded[name] = [encode_question(tokenizer, row["prompt"], row["answers"]) for row in rows]
    results: dict[str, list[StrengthResult]] = {name: [] for name in questions}
    bases: dict[str, torch.Tensor] = {}
    packs = reads_tries(model, next(iter(encoded.values())))
    total = sum(map(len, questions.values())) * len(dict.fromkeys([0.0, *strengths]))
    with _bar(total, progress) as bar:
        for strength in dict.fromkeys([0.0, *strengths]):
            with steering_strength(model, strength):
                for name, rows in questions.items():
                    result, decisions = measure(
                        model, rows, encoded[name], strength, bases.get(name), packs, seed, bar.update
                    )
                    if name not in bases:
                        bases[name] = decisions
                        for key, of in (("kl", "bias"), ("kl_unambiguous", "accuracy")):
                            if of in result.measures:  # the base's KL to itself
                                result.measures[key] = Measure(0.0, 0.0, result.measures[of].n)
                    if strength in strengths:
                        results[name].append(result)
    for name in results:
        results[name].sort(key=lambda result: list(strengths).index(result.strength))
    return Report(results, dict(description or {}))


class _NoBar:
    def update(self, n: int) -> None: ...

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *error: object) -> None: ...


def _bar(total: int, shown: bool) -> Any:
    if not shown:
        return _NoBar()
    from tqdm.auto import tqdm

    return tqdm(total=total, unit="question", desc="Measuring")
