"""Prompts as the text that a model reads: messages through the chat template, in whichever form it takes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import TemplateError


# Stands for a text where a template is asked which form of content it shows.
_PROBE = "xyzzy"


def row_images(row: Mapping[str, Any]) -> list[Any]:
    """The pictures of a row, from its column `images` or `image`."""
    images = row.get("images")
    if images is None:
        images = [] if row.get("image") is None else [row["image"]]
    return list(images)


def with_images(messages: Sequence[Mapping[str, Any]], count: int) -> list[dict[str, Any]]:
    """
    Messages in the structured form, with placeholders for pictures before the first user's text where there are none
    (as TRL's `prepare_multimodal_messages`, which the trainer uses for sampled rollouts).

    Raises:
        ValueError: there are placeholders already, and not as many as pictures; or a content cannot be read.
    """
    placed = sum(part.get("type") == "image" for message in messages for part in _parts(message))
    found: list[dict[str, Any]] = []
    for message in messages:
        first_user = message["role"] == "user" and not any(m["role"] == "user" for m in found)
        parts = [{"type": "image"}] * (count if first_user and not placed else 0) + _parts(message)
        found.append({**message, "content": parts} if message.get("content") is not None else dict(message))
    placed = sum(part.get("type") == "image" for message in found for part in _parts(message))
    if placed != count:
        raise ValueError(f"The prompt has {placed} places for pictures and the row {count} pictures.")
    return found


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The content of a message as a list of parts; none for a call of a tool without any."""
    content = message.get("content")
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    if isinstance(content, (list, tuple)) and all(isinstance(part, Mapping) for part in content):
        # A data set fills what one part has and another has not with None.
        return [{key: value for key, value in part.items() if value is not None} for part in content]
    if content is None and (message.get("tool_calls") or message.get("reasoning_content")):
        return []
    raise ValueError(
        f"The content of a message must be text or a list of parts, got {content!r} in {dict(message)!r}."
    )


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message whose content is a list of texts, with one text."""
    if isinstance(message.get("content"), str) or message.get("content") is None:
        return dict(message)
    return {**message, "content": "\n".join(part.get("text", "") for part in _parts(message))}


def chat_template(processor: Any) -> str:
    """
    The chat template of a processor, or of its tokenizer.

    Raises:
        ValueError: there is none.
    """
    tokenizer = getattr(processor, "tokenizer", processor)
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):  # several by name
        template = template.get("default")
    if not template:
        raise ValueError(
            f"The prompt is a list of messages and {type(processor).__name__} has no chat template. Give plain text, "
            "or set its chat_template."
        )
    return str(template)


def rendered(processor: Any, messages: Sequence[Mapping[str, Any]], pictures: int, **kwargs: Any) -> str:
    """
    What a model reads for a conversation. A last message of the assistant is continued; otherwise one of its begins.

    Args:
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): the model's tokenizer or processor.
        messages (`Sequence[Mapping]`): the conversation, contents as text or lists of parts. Where the template shows
            only one of these forms (most of the text models' print a list as Python does), it is given that.
        pictures (`int`): how many there are.
        **kwargs: what the template takes besides, such as `enable_thinking=False` or `tools`.

    Returns:
        `str`: the text.

    Raises:
        ValueError: there is no chat template, it refuses the messages, or a content cannot be read.
    """
    template = kwargs.pop("chat_template", None) or chat_template(processor)
    speaker = processor if pictures else getattr(processor, "tokenizer", processor)
    prefilled = bool(messages) and messages[-1]["role"] == "assistant" and messages[-1].get("content") is not None
    settings = {"add_generation_prompt": not prefilled, "continue_final_message": prefilled, **kwargs}

    def render(conversation: Sequence[Mapping[str, Any]]) -> str:
        conversation = [dict(message) for message in conversation]
        try:
            text = speaker.apply_chat_template(conversation, chat_template=template, tokenize=False, **settings)
        except (TemplateError, TypeError) as error:
            raise ValueError(f"The chat template cannot render the prompt {list(messages)!r}: {error}") from error
        return str(text)

    parted = with_images(messages, pictures)
    strange = next((p for m in parted for p in _parts(m) if p.get("type") not in ("text", "image")), None)
    if strange is not None:
        raise ValueError(f"The prompt {list(messages)!r} has content that is no text and no picture: {strange!r}.")
    if pictures:
        return render(parted)
    given = [{**m, "content": _parts(m)} if isinstance(m.get("content"), (list, tuple)) else m for m in messages]
    as_parts = any(isinstance(message.get("content"), list) for message in given)
    if as_parts and not _shows(speaker, template, [{"type": "text", "text": _PROBE}]):
        return render([_as_text(message) for message in messages])
    text = render(given)
    texts = [message["content"] for message in given if isinstance(message.get("content"), str)]
    if any(part.strip() not in text for part in texts) and not _shows(speaker, template, _PROBE):
        return render(parted)
    return text


def _shows(speaker: Any, template: str, content: Any) -> bool:
    """Whether a template shows a user's content of this form as it is."""
    probe = [{"role": "user", "content": content}]
    try:
        text = speaker.apply_chat_template(probe, chat_template=template, tokenize=False)
    except Exception:  # of whatever kind: a template may call anything on what it is given
        return False
    return _PROBE in text and "'text'" not in text and '"text"' not in text
