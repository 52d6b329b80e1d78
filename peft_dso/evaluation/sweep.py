"""Bias, ability and KL of a model over a range of strengths."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Optional

import numpy as np
from torch import nn

from ..questions import check_questions
from ..scoring import EncodedQuestion, check_readable, check_reads_pictures, encode_row, row_images
from .answered import Answered, NeutralCost
from .asking import Said, ask
from .generated import generated
from .knob import Knob, checked_strengths, knob_of, rows_at
from .measures import Measure, measure_all, occupation_biases
from .neutral import neutral_costs


@dataclass
class StrengthResult:
    """
    What was measured at one strength.

    Args:
        strength (`float`): the strength w.
        measures (`dict[str, Measure]`): by name, those of [`~peft_dso.evaluation.measures.MEASURES`] for which there
            is something to measure.
        occupations (`dict[str, float]`): see [`~peft_dso.evaluation.measures.occupation_biases`], from probabilities.
    """

    strength: float
    measures: dict[str, Measure]
    occupations: dict[str, float] = field(default_factory=dict)

    def _value(self, name: str) -> float:
        return self.measures[name].value if name in self.measures else math.nan

    @property
    def noise_floor(self) -> float:
        """The `bias` that a fair model would show on these questions."""
        return self._value("noise_floor")

    @property
    def noise_floor_first_choice(self) -> float:
        """The same for `bias_first_choice`."""
        return self._value("noise_floor_first_choice")

    @property
    def accuracy_bound(self) -> float:
        """How far theorem 2 of the paper lets the accuracy move, from `kl_unambiguous`."""
        return self._value("accuracy_bound")


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


def summarize(
    rows: Sequence[Mapping[str, Any]],
    log_probs: np.ndarray,
    strength: float,
    kl: Optional[np.ndarray] = None,
    base: Optional[np.ndarray] = None,
    seed: int = 0,
    *,
    abstained: Optional[np.ndarray] = None,
    neutral: Optional[NeutralCost] = None,
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
        abstained (`np.ndarray`, *optional*): log-probability of the named abstentions, shape `(questions,)`.
        neutral (`NeutralCost`, *optional*): what the strength does to neutral texts.

    Returns:
        `StrengthResult`: the measures.
    """
    said = Answered(rows, log_probs, abstained, kl, base, neutral, seed)
    result = StrengthResult(strength, measure_all(said))
    if len(said.ambiguous):
        shares, occupations, _, fair = said.shares_of(first_choice=False)
        result.occupations = occupation_biases(shares, occupations, fair)
    return result


def _written(
    model: nn.Module,
    processor: Any,
    rows: tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]],
    strengths: Sequence[float],
    knob: Knob,
    max_new_tokens: int,
    progress: Callable[[int], Any],
) -> dict[float, Said]:
    """What the model writes at each strength, asked as at strength 0 and as at any other."""
    said = {}
    for w in strengths:
        with knob.at(w):
            said[w] = Said(*generated(model, processor, rows[w != 0], max_new_tokens, progress))
    return said


def sweep(
    model: nn.Module,
    processor: Any,
    questions: Mapping[str, Sequence[Mapping[str, Any]]],
    strengths: Optional[Sequence[float]] = None,
    *,
    knob: Optional[Knob] = None,
    neutral: Optional[Sequence[str]] = None,
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
        neutral (`Sequence[str]`, *optional*): texts that have nothing to do with the questions, on which KL and
            perplexity per token are measured.
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
    rewritten: dict[str, Optional[list[EncodedQuestion]]] = {
        name: None if rows is questions[name] else [encode_row(processor, row) for row in rows]
        for name, rows in asked.items()
    }
    for some in (*encoded.values(), *rewritten.values()):
        check_readable(model, some or ())
    order = list(dict.fromkeys([0.0, *strengths]))
    results: dict[str, list[StrengthResult]] = {}
    with _bar(sum(map(len, questions.values())) * len(order) + len(neutral or ()), progress) as bar:
        costs = neutral and neutral_costs(model, processor, neutral, strengths, knob=knob, progress=bar.update)
        for name, rows in questions.items():
            if answers == "text":
                both = rows, asked[name]
                said = _written(model, processor, both, order, knob, max_new_tokens, bar.update)
            else:
                said = ask(
                    model,
                    encoded[name],
                    strengths,
                    knob=knob,
                    rewritten=rewritten[name],
                    progress=bar.update,
                    batch_tokens=batch_tokens,
                )
            results[name] = [
                summarize(
                    rows,
                    said[w].answers,
                    w,
                    said[w].kl,
                    said[0.0].answers,
                    seed,
                    abstained=said[w].abstained,
                    neutral=costs[w] if costs else None,
                )
                for w in strengths
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
