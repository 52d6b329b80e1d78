"""Questions as token ids, of text and of pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Optional, TypeVar

from torch import nn

from ..questions.schema import abstention_forms, answer_forms


Tokens = tuple[int, ...]
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


def row_images(row: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row, from its column `images` or `image`."""
    images = row.get("images")
    if images is None:
        images = [] if row.get("image") is None else [row["image"]]
    return list(images)


def encode_row(processor: Any, row: Mapping[str, Any]) -> EncodedQuestion:
    """A row of questions as [`encode_question`] encodes it, all forms of its answers; answers may be missing."""
    forms = answer_forms(row) if row.get("answers") else []
    return encode_question(
        processor,
        row["prompt"],
        [texts[0] for texts in forms],
        row_images(row),
        forms=forms,
        abstentions=abstention_forms(row),
    )


def with_images(messages: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """
    Messages in the structured form, with placeholders for pictures before the first user's text where there are none
    (as TRL's `prepare_multimodal_messages`, which the trainer uses for sampled rollouts).

    Raises:
        ValueError: there are placeholders already, and not as many as pictures.
    """
    found: list[dict[str, Any]] = []
    placeholders = 0
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            first_user = message["role"] == "user" and not any(m["role"] == "user" for m in found)
            content = [{"type": "image"}] * (count if first_user else 0) + [{"type": "text", "text": content}]
        placeholders += sum(part["type"] == "image" for part in content)
        found.append({**message, "content": content})
    if placeholders != count:
        raise ValueError(f"The prompt has {placeholders} places for pictures and the row {count} pictures.")
    return found


def encode_question(
    processor: Any,
    prompt: Any,
    answers: Sequence[str],
    images: Sequence[Any] = (),
    *,
    forms: Optional[Sequence[Sequence[str]]] = None,
    abstentions: Sequence[str] = (),
) -> EncodedQuestion:
    """
    Tokenize a question. The answers are tokenized on their own, so that the prompt's tokens do not depend on them.

    Args:
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): the model's tokenizer or processor.
        prompt (`str` or `list[dict]`): plain text, or messages for the chat template.
        answers (`Sequence[str]`): as they follow the prompt, the leading space included.
        images (`Sequence`, *optional*): the pictures that belong to the prompt, which is a list of messages then.
        forms (`Sequence[Sequence[str]]`, *optional*): per answer the texts in which a model gives it; default the
            answer itself.
        abstentions (`Sequence[str]`, *optional*): named ways of not answering.

    Returns:
        `EncodedQuestion`: the token ids; a [`PicturedQuestion`] if there are pictures.

    Raises:
        ValueError: the prompt is empty, an answer has no token, two answers have the same tokens, there is no chat
            template for messages, or there are pictures that are missing or that the model cannot read.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    text = None
    if images:
        text = _pictured_text(processor, prompt, images)
        ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    elif isinstance(prompt, str):
        ids = list(tokenizer(prompt)["input_ids"])
        if ids and ids[-1] == tokenizer.eos_token_id and not prompt.endswith(tokenizer.eos_token or "\0"):
            ids.pop()  # a tokenizer that closes every text: the answer would stand after the end
    else:
        template = _chat_template(processor)
        if tokenizer is not processor:
            prompt = with_images(prompt, 0)
        encoding = tokenizer.apply_chat_template(
            prompt, chat_template=template, add_generation_prompt=True, tokenize=True, return_dict=True
        )
        ids = list(encoding["input_ids"])
    if not ids:
        raise ValueError(f"The prompt {prompt!r} has no token.")
    encoded = _encode_forms(tokenizer, [[answer] for answer in answers] if forms is None else forms, abstentions)
    *answered, abstained = encoded
    if text is not None:
        return PicturedQuestion(tuple(ids), tuple(answered), text, tuple(images), processor, abstentions=abstained)
    return EncodedQuestion(tuple(ids), tuple(answered), abstentions=abstained)


def _encode_forms(
    tokenizer: Any, forms: Sequence[Sequence[str]], abstentions: Sequence[str]
) -> list[tuple[Tokens, ...]]:
    """The tokens of the forms of each answer, and last of the abstentions; each once."""
    encoded: list[tuple[Tokens, ...]] = []
    said: dict[Tokens, tuple[int, str]] = {}
    for number, texts in enumerate((*forms, abstentions)):
        found: dict[Tokens, None] = {}
        for text in texts:
            tokens = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            if not tokens:
                raise ValueError(f"The answer {text!r} has no token.")
            other, as_text = said.setdefault(tokens, (number, text))
            if other != number:
                raise ValueError(f"The answers {as_text!r} and {text!r} have the same tokens.")
            found[tokens] = None
        encoded.append(tuple(found))
    return encoded


def _chat_template(processor: Any) -> str:
    template = getattr(processor, "chat_template", None) or getattr(
        getattr(processor, "tokenizer", None), "chat_template", None
    )
    if not template:
        raise ValueError(
            f"The prompt is a list of messages and {type(processor).__name__} has no chat template. Give plain text, "
            "or set its chat_template."
        )
    return str(template)


def _pictured_text(processor: Any, prompt: Any, images: Sequence[Any]) -> str:
    """What the processor reads for a prompt with pictures."""
    if getattr(processor, "image_processor", None) is None:
        raise ValueError(
            f"A row has {len(images)} pictures, and {type(processor).__name__} reads text only. Give the processor of "
            "a vision-language model."
        )
    if isinstance(prompt, str):
        raise ValueError(f"A prompt with pictures must be a list of messages, got {prompt!r}.")
    if any(image is None for image in images):
        raise ValueError(f"Picture {list(images).index(None)} of the prompt {prompt!r} is missing.")
    template = _chat_template(processor)
    messages = with_images(prompt, len(images))
    text: str = processor.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=True, tokenize=False
    )
    return text
