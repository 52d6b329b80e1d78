"""Questions as token ids, of text and of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional, TypeVar

from torch import nn
from transformers.utils import logging

from ..answers import abstention_forms, answer_forms
from .prompts import rendered, row_images
from .tokens import Tokens, continuations, with_special_tokens


logger = logging.get_logger(__name__)

Encoded = TypeVar("Encoded", bound="EncodedQuestion")


@dataclass(frozen=True)
class EncodedQuestion:
    """
    Token ids of one question.

    Args:
        prompt (`tuple[int, ...]`): at least one token.
        answers (`tuple[tuple[tuple[int, ...], ...], ...]`): per answer its forms, of at least one token each, none
            equal to one of another answer; none at all where only the distribution after the prompt is asked for.
        abstentions (`tuple[tuple[int, ...], ...]`, *optional*): named ways of not answering.
    """

    prompt: Tokens
    answers: tuple[tuple[Tokens, ...], ...]
    abstentions: tuple[Tokens, ...] = field(default=(), kw_only=True)

    def prompt_only(self: Encoded) -> Encoded:
        """The question without its answers: only the distribution after the prompt is read."""
        return replace(self, answers=(), abstentions=())

    def answers_only(self: Encoded) -> Encoded:
        """
        The question without its abstentions, except those that begin as a form of an answer does: the probabilities of
        the answers stay what they are, and what else could be said is not followed to its end.
        """
        forms = {form for answer in self.answers for form in answer}
        kept = (said for said in self.abstentions if any(said[:length] in forms for length in range(len(said))))
        return replace(self, abstentions=tuple(kept))


@dataclass(frozen=True)
class PicturedQuestion(EncodedQuestion):
    """
    A question with pictures. They are prepared with the rest of a batch, by the processor.

    Args:
        prompt (`tuple[int, ...]`): the tokens of the text, a picture's placeholder not expanded.
        answers (`tuple[tuple[tuple[int, ...], ...], ...]`): as in [`EncodedQuestion`].
        text (`str`): what the processor reads.
        images (`tuple`): the pictures.
        processor (`ProcessorMixin`): the model's.
    """

    text: str
    images: tuple[Any, ...]
    processor: Any


def check_reads_pictures(model: nn.Module) -> None:
    """
    Raises:
        ValueError: the model's config names no token that stands for a picture.
    """
    config = getattr(model, "config", None)
    names = ("image_token_id", "image_token_index")
    if all(getattr(config, name, None) is None for name in names):
        raise ValueError(
            f"There are rows with pictures, and {type(model).__name__} ({getattr(config, 'model_type', 'no config')}) "
            "has no image token: it reads text only. Use a vision-language model."
        )


def encode_row(
    processor: Any, row: Mapping[str, Any], *, chat_template_kwargs: Optional[Mapping[str, Any]] = None
) -> EncodedQuestion:
    """A row of questions as [`encode_question`] encodes it, all forms of its answers; answers may be missing."""
    forms = answer_forms(row) if row.get("answers") else []
    return encode_question(
        processor,
        row["prompt"],
        [texts[0] for texts in forms],
        row_images(row),
        forms=forms,
        abstentions=abstention_forms(row),
        chat_template_kwargs=chat_template_kwargs,
    )


def encode_question(
    processor: Any,
    prompt: Any,
    answers: Sequence[str],
    images: Sequence[Any] = (),
    *,
    forms: Optional[Sequence[Sequence[str]]] = None,
    abstentions: Sequence[str] = (),
    chat_template_kwargs: Optional[Mapping[str, Any]] = None,
) -> EncodedQuestion:
    """
    Tokenize a question: the prompt as a model is given it, and each answer as the tokens that it is behind that prompt
    (see [`continuations`]).

    Args:
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): the model's tokenizer or processor.
        prompt (`str` or `list[dict]`): plain text, or messages for the chat template, of which a last one of the
            assistant is continued.
        answers (`Sequence[str]`): as they follow the prompt, the leading space included.
        images (`Sequence`, *optional*): the pictures that belong to the prompt, which is a list of messages then.
        forms (`Sequence[Sequence[str]]`, *optional*): per answer the texts in which a model gives it; default the
            answer itself. A further form, or an abstention, that the tokenizer has no tokens for cannot be said and is
            left out.
        abstentions (`Sequence[str]`, *optional*): named ways of not answering.
        chat_template_kwargs (`Mapping[str, Any]`, *optional*): what the chat template takes besides the messages, such
            as `{"enable_thinking": False}`.

    Returns:
        `EncodedQuestion`: the token ids; a [`PicturedQuestion`] if there are pictures.

    Raises:
        ValueError: the prompt is empty, an answer has no token or unknown ones, two answers have the same tokens, the
            messages cannot be rendered, or there are pictures that are missing or that the model cannot read.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    if images:
        _check_pictures(processor, prompt, images)
    conversation = not isinstance(prompt, str)
    text = rendered(processor, prompt, len(images), **(chat_template_kwargs or {})) if conversation else prompt
    texts = [[answer] for answer in answers] if forms is None else forms
    ids, *tokens = continuations(tokenizer, text, [t for group in (*texts, abstentions) for t in group])
    if not conversation:
        ids = with_special_tokens(tokenizer, text, ids)
    if not ids:
        raise ValueError(f"The prompt {prompt!r} has no token.")
    *answered, abstained = _grouped(texts, abstentions, tokens)
    if images:
        return PicturedQuestion(ids, tuple(answered), text, tuple(images), processor, abstentions=abstained)
    return EncodedQuestion(ids, tuple(answered), abstentions=abstained)


def _grouped(
    forms: Sequence[Sequence[str]], abstentions: Sequence[str], tokens: Sequence[Optional[Tokens]]
) -> list[tuple[Tokens, ...]]:
    """The tokens of the forms of each answer, and last of the abstentions; each once."""
    encoded: list[tuple[Tokens, ...]] = []
    said: dict[Tokens, tuple[int, str]] = {}
    remaining = iter(tokens)
    for number, texts in enumerate((*forms, abstentions)):
        found: dict[Tokens, None] = {}
        for place, text in enumerate(texts):
            form = next(remaining)
            if form is None:
                what = f"{text!r} cannot be said behind the prompt: it has tokens that the tokenizer does not know"
                if place == 0 and number < len(forms):
                    raise ValueError(f"The answer {what}.")
                logger.warning_once(f"The form {what}. It is left out.")
                continue
            if not form:
                raise ValueError(f"The answer {text!r} has no token.")
            other, as_text = said.setdefault(form, (number, text))
            if other != number:
                raise ValueError(f"The answers {as_text!r} and {text!r} have the same tokens.")
            found[form] = None
        encoded.append(tuple(found))
    return encoded


def _check_pictures(processor: Any, prompt: Any, images: Sequence[Any]) -> None:
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"A row has {len(images)} pictures, and {type(processor).__name__} reads text only. Give the processor of "
            "a vision-language model."
        )
    if isinstance(prompt, str):
        raise ValueError(f"A prompt with pictures must be a list of messages, got {prompt!r}.")
    if any(image is None for image in images):
        raise ValueError(f"Picture {list(images).index(None)} of the prompt {prompt!r} is missing.")
