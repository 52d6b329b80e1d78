"""The rows that a trainer draws from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Optional, overload

from torch.utils.data import Dataset
from transformers.utils import logging

from ..objective import FairnessReward
from ..questions import check_questions, neutral_texts
from ..questions.schema import index_problem
from ..scoring import first_tokens


logger = logging.get_logger(__name__)


class QuestionRows(Dataset[dict[str, Any]]):
    """
    Questions as they are, in the order given. All rows have all columns, `None` where a row lacks one, so that the
    first of a batch does not decide what the others have; prompts of text and conversations, with and without
    pictures, stand side by side, which a table of `datasets` does not allow.

    Args:
        rows (`Sequence[Mapping]`): questions.
    """

    def __init__(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self.column_names = list(dict.fromkeys(column for row in rows for column in row))
        self.rows = [{column: row.get(column) for column in self.column_names} for row in rows]

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.rows)

    @overload
    def __getitem__(self, key: int) -> dict[str, Any]: ...

    @overload
    def __getitem__(self, key: str) -> list[Any]: ...

    def __getitem__(self, key: int | str) -> Any:
        """A row by its number, or a column by its name."""
        return [row[key] for row in self.rows] if isinstance(key, str) else self.rows[key]


def as_rows(dataset: Any, name: str, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    """
    A dataset as a list of rows.

    Args:
        dataset (`Dataset` or `list[dict]`): the rows.
        name (`str`): what an error calls it.
        required (`Sequence[str]`): columns that no row may lack.

    Returns:
        `list[dict]`: copies of the rows.

    Raises:
        TypeError: it is neither a dataset nor a list.
        ValueError: it is missing, or a row lacks a column.
    """
    if dataset is None:
        raise ValueError(f"{name} is missing: give a datasets.Dataset or a list of rows.")
    if isinstance(dataset, (str, Mapping)) or not hasattr(dataset, "__len__"):
        raise TypeError(f"{name} must be a datasets.Dataset or a list of rows, got {type(dataset).__name__}.")
    rows = [dict(row) for row in dataset]
    for number, row in enumerate(rows):
        for column in required:
            if not row.get(column):
                raise ValueError(f"{name}, row {number}: the column {column!r} is missing or empty.")
    return rows


def warn_of_halves(rows: Sequence[Mapping[str, Any]], size: int) -> None:
    """Say so where blocks of `size` questions of an occupation cut pairs with places (see [`OccupationSampler`])."""
    placed = [(row["occupation"], row["pair"]) for row in rows if None not in (row.get("pair"), row.get("first"))]
    for (occupation, pair), count in Counter(placed).items():
        if size % count:
            logger.warning(
                f"questions_per_occupation={size} cuts pairs of {count} questions, such as pair={pair!r} of "
                f"{occupation!r}: half a pair does not tell a preference for a place (`first`) from a stereotype, and "
                f"training takes both away. Make it a multiple of {count}."
            )
            return


def retained_rows(dataset: Any) -> list[dict[str, Any]]:
    """
    Rows of a `retain_dataset`, of which only the prompt must be there.

    Raises:
        ValueError: a row has no prompt, or its right answer is none of its answers.
    """
    rows = as_rows(dataset, "retain_dataset", required=("prompt",))
    for number, row in enumerate(rows):
        if row.get("answers") and (problem := index_problem(row)):
            raise ValueError(f"retain_dataset, row {number}: {problem}.")
    return rows


def eval_rows(dataset: Any, groups: tuple[str, ...]) -> Any:
    """The questions to evaluate on, or several sets of them by name, checked before anything is trained."""
    if dataset is None:
        return None
    if isinstance(dataset, Mapping):
        return {name: eval_rows(rows, groups) for name, rows in dataset.items()}
    rows = as_rows(dataset, "eval_dataset")
    try:
        check_questions(rows, groups)
    except ValueError as error:
        raise ValueError(f"eval_dataset: {error}") from None
    return QuestionRows(rows)


def all_rows(evaluated: Any) -> list[dict[str, Any]]:
    """All rows of [`eval_rows`]."""
    if isinstance(evaluated, dict):
        return [row for rows in evaluated.values() for row in rows]
    return list(evaluated or ())


def neutral_tokens(processor: Any, texts: Optional[Sequence[str]], most: int) -> list[tuple[int, ...]]:
    """
    The beginnings of neutral texts, as a model reads them.

    Args:
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): a tokenizer, or a processor with one.
        texts (`Sequence[str]`, *optional*): the texts; default those of the package.
        most (`int`): tokens of each, at most.

    Returns:
        `list[tuple[int, ...]]`: of those texts that have two tokens, so that something is said after the first.

    Raises:
        TypeError: the texts are one text.
        ValueError: no text is left.
    """
    if isinstance(texts, str):
        raise TypeError(f"neutral_texts must be a list of texts, got {texts!r}: write [{texts!r}].")
    given = neutral_texts("train") if texts is None else texts
    found = [first_tokens(processor, text, most) for text in given]
    kept = [tokens for tokens in found if len(tokens) > 1]
    if not kept:
        raise ValueError(
            f"neutral_texts: none of {len(found)} has two tokens. Give longer ones, or none and neutral_coef=0."
        )
    return kept


def check_reward(reward: Optional[FairnessReward], groups: Sequence[str], warm_start: bool) -> None:
    """
    Refuse a fairness reward that does not fit the questions, or would forget a first pass at once.

    Args:
        reward (`FairnessReward`, *optional*): what pays or counts the answers.
        groups (`Sequence[str]`): of the questions.
        warm_start (`bool`): whether there is a first pass.

    Raises:
        ValueError: it does not know a group, or has no memory.
    """
    if reward is None:
        return
    if unknown := set(groups) - set(reward.groups):
        raise ValueError(
            f"The FairnessReward has the groups {list(reward.groups)}, the questions also have {sorted(unknown)}: "
            f"give FairnessReward({list(groups)})."
        )
    if warm_start and not reward.memory:
        raise ValueError(
            "warm_start=True needs a memory above 0 (reward_memory, or memory of a FairnessReward of your own): "
            "without one the counts are lost at once."
        )
