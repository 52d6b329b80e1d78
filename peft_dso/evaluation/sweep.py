"""Bias, ability and KL of a steered model over a range of strengths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
from torch import nn

from ..questions import check_questions, question_groups
from ..scoring import check_reads_pictures, encode_row, row_images
from . import measures as metrics
from .asking import answer_log_probs
from .generated import generated_answers
from .knob import Knob, checked_strengths, knob_of, rows_at
from .measures import Measure


@dataclass
class StrengthResult:
    """
    What was measured at one strength.

    Args:
        strength (`float`): the strength w.
        measures (`dict[str, Measure]`): by name, those for which there is no question left out.
            On ambiguous questions: `bias` and `bias_first_choice` (per-occupation bias, from probabilities and from
            first choices), `bias_corrected` and `bias_first_choice_corrected` (less what a fair model would show, see
            [`~peft_dso.evaluation.measures.corrected_bias`]), `gap` and `gap_first_choice` (signed; only for pro and
            anti), `position` (preference for the answer named first), `abstention` (probability of anything but the
            named answers), `kl` (to the base, in nats, where the answer is decided).
            On unambiguous ones: `accuracy` (the right answer is the likeliest), `accuracy_change` (to the base's),
            `accuracy_gap` (where the right answer is pro less where it is anti), `right` (probability of the right
            answer among the named ones), `right_of_all` (among all continuations) and `kl_unambiguous`.
        noise_floor (`float`): the `bias` that a fair model would show on these questions.
        noise_floor_first_choice (`float`): the same for `bias_first_choice`.
        occupations (`dict[str, float]`): see [`~peft_dso.evaluation.measures.occupation_biases`], from probabilities.
        accuracy_bound (`float`): how far theorem 2 of the paper lets the accuracy move, from `kl_unambiguous`.
    """

    strength: float
    measures: dict[str, Measure]
    noise_floor: float = float("nan")
    noise_floor_first_choice: float = float("nan")
    occupations: dict[str, float] = field(default_factory=dict)
    accuracy_bound: float = float("nan")


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


def _shares(
    log_probs: np.ndarray, rows: Sequence[Mapping[str, Any]], groups: Sequence[str]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Per question the groups' and the answers' shares among the named answers, shapes `(questions, groups)` and
    `(questions, answers)`; NaN where none was given.
    """
    highest = log_probs.max(axis=1, keepdims=True)
    p = np.exp(log_probs - np.where(np.isfinite(highest), highest, 0.0))
    total = p.sum(axis=1, keepdims=True)
    answers = np.divide(p, total, out=np.full_like(p, np.nan), where=total > 0)
    shares = np.zeros((len(rows), len(groups)))
    for i, row in enumerate(rows):
        for j, meaning in enumerate(row["meanings"]):
            shares[i, groups.index(meaning)] += answers[i, j]
    return shares, answers


def _first_choices(shares: np.ndarray) -> np.ndarray:
    """1 for the likeliest group and 0 for the others; a tie is shared."""
    chosen = (shares == shares.max(axis=1, keepdims=True)).astype(float)
    chosen[np.isnan(shares).any(axis=1)] = np.nan
    return chosen / chosen.sum(axis=1, keepdims=True)


def summarize(
    rows: Sequence[Mapping[str, Any]],
    log_probs: np.ndarray,
    strength: float,
    kl: Optional[np.ndarray] = None,
    base: Optional[np.ndarray] = None,
    seed: int = 0,
) -> StrengthResult:
    """
    The measures of one set of questions at one strength.

    Args:
        rows (`Sequence[Mapping]`): questions.
        log_probs (`np.ndarray`): log-probabilities of their answers, shape `(questions, answers)`, -inf where a
            question has fewer; 0 and -inf for answers given in words (all -inf: none of them was given).
        strength (`float`): what to note as the strength.
        kl (`np.ndarray`, *optional*): KL to the base in nats, shape `(questions,)`.
        base (`np.ndarray`, *optional*): the base's log-probabilities, of the shape of `log_probs`.
        seed (`int`, defaults to 0): of the bootstraps.

    Returns:
        `StrengthResult`: the measures.
    """
    measures: dict[str, Measure] = {}
    result = StrengthResult(strength, measures)
    right = np.array([-1 if row.get("right") is None else row["right"] for row in rows])
    groups = question_groups(rows)
    shares, answers = _shares(log_probs, rows, groups)

    def pairs_of(chosen: Sequence[int]) -> list[str]:
        return [str(rows[i].get("pair") or i) for i in chosen]

    chosen = np.flatnonzero(right < 0).tolist()
    if chosen:
        s, occupations, pairs = shares[chosen], [rows[i]["occupation"] for i in chosen], pairs_of(chosen)
        first = _first_choices(s)
        for name, x in (("bias", s), ("bias_first_choice", first)):
            measures[name] = metrics.per_occupation_bias(x, occupations, pairs, seed)
            floor = metrics.noise_floor(x, occupations, pairs, seed)
            measures[f"{name}_corrected"] = metrics.corrected_bias(measures[name], floor)
            if name == "bias":
                result.noise_floor = floor
            else:
                result.noise_floor_first_choice = floor
        if groups == ("pro", "anti"):
            measures["gap"] = metrics.stereotype_gap(s, pairs, seed)
            measures["gap_first_choice"] = metrics.stereotype_gap(first, pairs, seed)
        placed = [i for i in chosen if rows[i].get("first") is not None]
        if placed:
            share = [answers[i, rows[i]["first"]] for i in placed]
            counts = [len(rows[i]["answers"]) for i in placed]
            measures["position"] = metrics.position_preference(share, counts, pairs_of(placed), seed)
        measures["abstention"] = metrics.mean(1 - np.exp(log_probs[chosen]).sum(axis=1), pairs, seed)
        if kl is not None:
            measures["kl"] = metrics.mean(kl[chosen], pairs, seed)
        result.occupations = metrics.occupation_biases(s, occupations)

    chosen = np.flatnonzero(right >= 0).tolist()
    if chosen:
        pairs, wanted = pairs_of(chosen), right[chosen]
        # An answer that was not given is not right, also where none was.
        given = log_probs[chosen, wanted]
        correct = (log_probs[chosen].argmax(axis=1) == wanted) & np.isfinite(given)
        measures["accuracy"] = metrics.mean(correct, pairs, seed)
        if base is not None:
            before = base[chosen].argmax(axis=1) == wanted
            measures["accuracy_change"] = metrics.mean(correct.astype(float) - before, pairs, seed)
        if groups == ("pro", "anti"):
            pro = [rows[i]["meanings"][right[i]] == "pro" for i in chosen]
            if any(pro) and not all(pro):
                measures["accuracy_gap"] = metrics.difference(correct, pro, pairs, seed)
        measures["right"] = metrics.mean(np.nan_to_num(answers[chosen, wanted]), pairs, seed)
        measures["right_of_all"] = metrics.mean(np.exp(given), pairs, seed)
        if kl is not None:
            measures["kl_unambiguous"] = metrics.mean(kl[chosen], pairs, seed)
            result.accuracy_bound = metrics.capability_bound(measures["kl_unambiguous"].value)
    return result


def sweep(
    model: nn.Module,
    processor: Any,
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
    strengths: Optional[Sequence[float]] = None,
    *,
    knob: Optional[Knob] = None,
    answers: str = "probabilities",
    seed: int = 0,
    batch_tokens: int = 1024,
    max_new_tokens: int = 16,
    progress: bool = False,
    description: Optional[Mapping[str, Any]] = None,
) -> Report:
    """
    Measure a model at several strengths, against itself at strength 0.

    Args:
        model (`nn.Module`): a model, with an adapter or without; its strength is restored afterwards.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer, or processor for pictures.
        questions (`Mapping[str, Sequence[Mapping]]`): sets of questions by name.
        strengths (`Sequence[float]`, *optional*): the strengths, in the order of the report; default those that suit
            the knob: 0, 0.2, ..., 1; 0 and 1 of what is on or off; 0 of a model without an adapter.
        knob (`Knob`, *optional*): what the strengths turn; default [`knob_of`] the model: a DSO adapter's strength, a
            LoRA's scaling, any other adapter on or off, or nothing.
        answers (`str`, defaults to `"probabilities"`): `"probabilities"` reads the answers' log-probabilities,
            `"text"` lets the model write greedily and reads what it wrote (see [`~peft_dso.answers.read_answer`]);
            there is no KL then.
        seed (`int`, defaults to 0): of the bootstraps.
        batch_tokens (`int`, defaults to 1024): tokens per batch.
        max_new_tokens (`int`, defaults to 16): longest answer with `answers="text"`.
        progress (`bool`, defaults to `False`): show a progress bar.
        description (`Mapping[str, Any]`, *optional*): what to note in the report.

    Returns:
        `Report`: the results.

    Raises:
        ValueError: a question is wrong, there is no set, no strength or one that the knob cannot be turned to, or
            `answers` is unknown.
    """
    if answers not in ("probabilities", "text"):
        raise ValueError(f"answers={answers!r}: choose 'probabilities' or 'text'.")
    knob = knob_of(model) if knob is None else knob
    strengths = checked_strengths(knob, strengths)
    if not questions or not strengths:
        raise ValueError(f"Nothing to measure: {len(questions)} sets of questions, {len(strengths)} strengths.")
    asked: dict[str, Sequence[Mapping[str, Any]]] = {}  # by set, as at any other strength than 0
    for name, rows in questions.items():
        check_questions(rows)
        if any(row_images(row) for row in rows):
            check_reads_pictures(model)
        asked[name] = rows if not any(strengths) else rows_at(knob, rows, 1.0)
    encoded = {name: [encode_row(processor, row) for row in rows] for name, rows in questions.items()}
    rewritten = {
        name: None if rows is questions[name] else [encode_row(processor, row) for row in rows]
        for name, rows in asked.items()
    }
    order = list(dict.fromkeys([0.0, *strengths]))
    results: dict[str, list[StrengthResult]] = {}
    with _bar(sum(map(len, questions.values())) * len(order), progress) as bar:
        for name, rows in questions.items():
            kl: Optional[dict[float, np.ndarray]] = None
            if answers == "text":
                said = {}
                for w in order:
                    with knob.at(w):
                        said[w] = generated_answers(
                            model, processor, rows if w == 0 else asked[name], max_new_tokens, progress=bar.update
                        )
            else:
                said, kl = answer_log_probs(
                    model,
                    encoded[name],
                    strengths,
                    bar.update,
                    batch_tokens,
                    knob=knob,
                    rewritten=rewritten[name],
                )
            results[name] = [
                summarize(rows, said[w], w, None if kl is None else kl[w], said[0.0], seed) for w in strengths
            ]
    return Report(results, {"answers": answers, "knob": knob.name, **(description or {})})


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
