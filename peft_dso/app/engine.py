"""What the page asks of a steered model: the answers' probabilities, and text, unsteered and steered in one batch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..objective.penalties import kl_divergence
from ..scoring import (
    EncodedQuestion,
    PicturedQuestion,
    check_reads_pictures,
    encode_question,
    lay_out,
    lay_out_pictured,
    positions_limit,
    score_layout,
)
from ..scoring.forward import PicturedQuestions, PlainQuestions
from ..tuner.strength import dso_layers
from .turns import Strengths, Turns
from .writing import write


LETTERS_PER_TOKEN = 64  # a prompt with more of them per token that may be read is not even tokenized


@dataclass(frozen=True)
class Comparison:
    """
    What a model says to a prompt, unsteered and steered.

    Args:
        words (`tuple[str, ...]`): the answers, and last "other words".
        base (`tuple[float, ...]`): their probabilities at strength 0; an answer that goes on to be another one is the
            other alone, so that they sum to 1.
        steered (`tuple[float, ...]`): their probabilities at the strengths asked for.
        kl (`float`): KL(steered || base) of the next token after the prompt, in nats.
    """

    words: tuple[str, ...]
    base: tuple[float, ...]
    steered: tuple[float, ...]
    kl: float


class SteeredModel:
    """
    A model with DSO adapters, for several people at once.

    Args:
        model (`nn.Module`): a `PeftModel`, or a plain model with loaded DSO adapters; all of them are made active.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        longest_prompt (`int`, defaults to 1024): tokens that a prompt may have.
        longest_text (`int`, defaults to 256): tokens that a text may have.

    Raises:
        ValueError: the model has no DSO adapter.
    """

    def __init__(self, model: Any, processor: Any, longest_prompt: int = 1024, longest_text: int = 256) -> None:
        # Below PEFT's wrapper, whose generate keeps something of each call in the model.
        self.model = model.eval().get_base_model() if hasattr(model, "get_base_model") else model.eval()
        self.processor = processor
        self.tokenizer = getattr(processor, "tokenizer", processor)
        self.adapters = tuple(dict.fromkeys(name for layer in dso_layers(model).values() for name in layer.dso_affine))
        # PeftModel.set_adapter takes one name, that of its tuner and that of a plain model several.
        (model.base_model if hasattr(model, "get_base_model") else model).set_adapter(list(self.adapters))
        positions = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        self.longest_prompt = min(longest_prompt, positions or longest_prompt)
        self.positions = positions_limit(self.model)
        self.longest_text = longest_text
        self.turns = Turns(self.model, self.adapters)

    @property
    def chats(self) -> bool:
        """Whether the model has a chat template."""
        return bool(getattr(self.processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None))

    @property
    def sees(self) -> bool:
        """Whether the model reads pictures."""
        return getattr(self.processor, "image_processor", None) is not None

    def vectors(self, adapter: str) -> dict[str, dict[str, torch.Tensor]]:
        """By site the `slope` and `shift` of an adapter, each of shape `(d,)`."""
        return {
            site: {key: value.detach().float().cpu() for key, value in layer.dso_affine[adapter].named_parameters()}
            for site, layer in dso_layers(self.model).items()
            if adapter in layer.dso_affine
        }

    def rows(self, strengths: Mapping[str, float], each: int = 1) -> Strengths:
        """
        One strength per row: `each` rows at 0, then as many at the strengths asked for.

        Raises:
            ValueError: an adapter is unknown, or a strength is not finite.
        """
        for name, value in strengths.items():
            if name not in self.adapters:
                raise ValueError(f"There is no adapter {name!r}. Loaded: {', '.join(self.adapters)}.")
            if not isinstance(value, (int, float)) or not math.isfinite(value):
                raise ValueError(f"The strength of {name} must be a number, got {value!r}.")
        return {name: [0.0] * each + [float(strengths.get(name, 0.0))] * each for name in self.adapters}

    def encode(self, prompt: Any, answers: Sequence[str] = (), images: Sequence[Any] = ()) -> EncodedQuestion:
        """
        A prompt as tokens.

        Args:
            prompt (`str` or `list[dict]`): text, or messages for the chat template.
            answers (`Sequence[str]`): as they follow the prompt.
            images (`Sequence`): its pictures.

        Raises:
            ValueError: the prompt is empty or too long, or there are pictures that the model cannot read.
        """
        last = prompt if isinstance(prompt, str) else prompt[-1]["content"] if prompt else ""
        if not str(last).strip():
            raise ValueError("The prompt is empty: write the beginning of a sentence, or a question.")
        remedy = "shorten it." if isinstance(prompt, str) else "shorten it, or begin the conversation anew."
        letters = len(prompt) if isinstance(prompt, str) else sum(len(str(m["content"])) for m in prompt)
        if letters > LETTERS_PER_TOKEN * self.longest_prompt:
            raise ValueError(
                f"The prompt has {letters} letters, and at most {self.longest_prompt} tokens are read here: {remedy}"
            )
        if images:
            check_reads_pictures(self.model)
        question = encode_question(self.processor, prompt, answers, images)
        if len(question.prompt) > self.longest_prompt:
            raise ValueError(
                f"The prompt has {len(question.prompt)} tokens, and at most {self.longest_prompt} are read here: "
                + remedy
            )
        return question

    def compare(
        self, prompt: Any, answers: Sequence[str], strengths: Mapping[str, float], images: Sequence[Any] = ()
    ) -> Comparison:
        """
        The probabilities of some answers at strength 0 and at others, in one batch.

        Args:
            prompt (`str` or `list[dict]`): text, or messages for the chat template.
            answers (`Sequence[str]`): as they follow the prompt, the leading space included.
            strengths (`Mapping[str, float]`): by adapter; 0 for those left out.
            images (`Sequence`): the pictures of the prompt.

        Returns:
            `Comparison`: the probabilities.

        Raises:
            ValueError: the prompt is empty or too long, an answer is empty or there twice, a strength is not finite,
                or the model cannot read the pictures.
        """
        if not answers:
            raise ValueError("There is no answer to compare: name some words, such as: he, she, they")
        question = self.encode(prompt, answers, images)
        layout: PlainQuestions | PicturedQuestions
        if isinstance(question, PicturedQuestion):
            layout = lay_out_pictured([question, question])
            rows = layout.tensors["input_ids"].shape[0]
        else:
            layout = lay_out([question, question])
            rows = layout.input_ids.shape[0]
        with self.turns.take(self.rows(strengths, rows // 2)), torch.no_grad():
            scores = score_layout(self.model, layout)
        base, steered = scores.answers.exp().tolist()
        kl = float(kl_divergence(scores.decision[1:], scores.decision[:1])[0])
        words = (*(answer.strip() for answer in answers), "other words")
        rest = [max(0.0, 1 - sum(p)) for p in (base, steered)]
        return Comparison(words, (*base, rest[0]), (*steered, rest[1]), kl)

    def write(
        self,
        prompts: tuple[Any, Any],
        strengths: Mapping[str, float],
        *,
        max_new_tokens: int = 64,
        temperature: float = 0.0,
        images: Sequence[Any] = (),
    ) -> Iterator[tuple[str, str]]:
        """
        Continue two prompts in one batch, the first at strength 0, the second at others, token by token. Others may
        have turns at the model in between.

        Args:
            prompts (`tuple`): text or messages, one for either strength.
            strengths (`Mapping[str, float]`): by adapter; 0 for those left out.
            max_new_tokens (`int`, defaults to 64): at most so many, and at most `longest_text`.
            temperature (`float`, defaults to 0): of the sampling; 0 takes the likeliest token.
            images (`Sequence`): the pictures of both prompts.

        Yields:
            Both texts, as far as they are written. Closing the iterator stops the writing.

        Raises:
            ValueError: as [`compare`], or the temperature is negative.
        """
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature={temperature!r}: give 0 for the likeliest words, or a number above it.")
        questions = [self.encode(prompt, (), images) for prompt in prompts]
        length = max(1, min(int(max_new_tokens), self.longest_text))
        if self.positions:  # what is behind them a model with learned positions cannot read
            length = max(1, min(length, self.positions - max(len(question.prompt) for question in questions)))
        return write(self.model, self.processor, self.turns, questions, self.rows(strengths), length, temperature)
