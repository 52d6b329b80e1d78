"""
The tokens of an answer behind its prompt.

A tokenizer writes the same answer differently at the front of a text and in the middle of one: Llama 2's and other
sentencepiece-like ones put a mark before every text, WordPiece marks what continues a word. So prompt and answer are
tokenized together, and the prompt's own tokens taken off.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any, Optional
from weakref import WeakKeyDictionary


Tokens = tuple[int, ...]

# What may stand before an answer that cannot be tokenized behind its prompt: nothing, or what few tokens begin with.
_BEFORE = ("", "\n", ".", ",", "(", ":", '"', "1", "x", "X")


def continuations(tokenizer: Any, prompt: str, answers: Sequence[str]) -> list[Any]:
    """
    The tokens of a prompt, and those with which a model that was given them goes on to say each of some answers.

    Where the tokens of the prompt are the beginning of those of prompt and answer, these are the rest. Where the two
    merge across the border (a prompt that ends with a space: `"that " + "he"`), a model that is given the prompt does
    not take its last token back: what it says is the answer in the tokens that it has in the middle of a text, chosen
    such that prompt and answer read back as they are written. (The probability behind the longest common beginning
    would be that of a model which was given another prompt.)

    Args:
        tokenizer (`PreTrainedTokenizerBase`): the model's tokenizer.
        prompt (`str`): the text that a model reads, special tokens of a chat template included.
        answers (`Sequence[str]`): as they follow the prompt.

    Returns:
        `list`: the prompt's tokens (without those that the tokenizer adds), then each answer's; `None` for an answer
        that the tokenizer has no tokens for.
    """
    before, *together = _tokens(tokenizer, [prompt, *(prompt + answer for answer in answers)])
    n = len(before)
    return [
        before,
        *(
            whole[n:]
            if whole[:n] == before and _known(tokenizer, whole[n:], answer)
            else _merged(tokenizer, prompt, before, answer)
            for answer, whole in zip(answers, together, strict=True)
        ),
    ]


def first_tokens(processor: Any, text: str, most: int) -> Tokens:
    """
    The first tokens of a text about nobody, as a model reads it.

    Args:
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): a tokenizer, or a processor with one.
        text (`str`): the text.
        most (`int`): at most so many.

    Returns:
        `tuple[int, ...]`: with the special tokens that stand before it.
    """
    return tuple(getattr(processor, "tokenizer", processor)(text)["input_ids"][:most])


def with_special_tokens(tokenizer: Any, text: str, tokens: Tokens) -> Tokens:
    """The tokens of a text with what the tokenizer adds before them; what it closes a text with is left off."""
    full = tuple(tokenizer(text)["input_ids"])
    lead = next((i for i in range(len(full) - len(tokens), -1, -1) if full[i : i + len(tokens)] == tokens), None)
    if tokens and lead is not None:
        return full[:lead] + tokens
    return full[:-1] if full[-1:] == (tokenizer.eos_token_id,) else full


def _tokens(tokenizer: Any, texts: Sequence[str]) -> list[Tokens]:
    return [tuple(tokens) for tokens in tokenizer(list(texts), add_special_tokens=False)["input_ids"]]


def _merged(tokenizer: Any, prompt: str, before: Tokens, answer: str) -> Optional[Tokens]:
    """The tokens that an answer has in the middle of a text; `None` if there are none that read back as it."""
    found: list[Tokens] = []
    for context in dict.fromkeys((*_BEFORE, prompt[-1:])):
        alone, together = _tokens(tokenizer, [context, context + answer])
        tokens = together[len(alone) :]
        if together[: len(alone)] == alone and _known(tokenizer, tokens, answer):
            found.append(tokens)
    if found and not any(found):
        return ()  # of spaces alone
    wanted = _written(tokenizer, before) + answer
    read = {tokens: _written(tokenizer, before + tokens) for tokens in found if tokens}
    exact = (tokens for tokens, text in read.items() if text == wanted)
    # Of a tokenizer that keeps neither spaces nor cases: but for these.
    near = (tokens for tokens, text in read.items() if _bare(text) == _bare(wanted))
    return next(exact, next(near, None))


def _written(tokenizer: Any, tokens: Tokens) -> str:
    return str(tokenizer.decode(list(tokens), clean_up_tokenization_spaces=False))


def _bare(text: str) -> str:
    """A text without spaces, cases and accents."""
    text = unicodedata.normalize("NFKD", text.casefold())
    return "".join(c for c in text if not c.isspace() and not unicodedata.combining(c))


# By tokenizer, whether tokens say the whole of a text.
_SAID: WeakKeyDictionary[Any, dict[tuple[Tokens, str], bool]] = WeakKeyDictionary()


def _known(tokenizer: Any, tokens: Tokens, answer: str) -> bool:
    """Whether the tokens say the whole answer: none of them unknown, and no letter left out."""
    said = _SAID.setdefault(tokenizer, {})
    if (tokens, answer) not in said:
        unknown = tokenizer.unk_token_id
        if unknown in tokens:
            complete = tokenizer.unk_token in answer
        else:  # a tokenizer without a token for what is unknown leaves it out
            letters, kept = (sum(map(str.isalnum, _bare(text))) for text in (answer, _written(tokenizer, tokens)))
            complete = kept >= letters
        said[tokens, answer] = complete
    return said[tokens, answer]
