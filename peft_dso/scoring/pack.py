"""
Questions laid out as tries.

Prompts of one task begin alike ("The nurse said that", "The nurse was late because"): each distinct prefix is computed
once, a token attends to its own ancestors only, and its position is its depth. What is read off is what each prompt
alone would give.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from .encode import EncodedQuestion
from .terms import Reads, reads_at, terms_of
from .tokens import Tokens


# Tokens of one packed row. Attention costs the square of it, so that longer rows gain nothing.
ROW_TOKENS = 256
# What a picture counts for in the size of a batch; how many tokens it takes is the processor's secret.
PICTURE_TOKENS = 64


@dataclass
class _Row:
    """A trie of token sequences: per node its token, its parent (-1 for none) and whether logits are read there."""

    tokens: list[int]
    parents: list[int]
    children: dict[tuple[int, int], int]
    scored: set[int]

    def insert(self, sequence: Sequence[int], node: int = -1) -> int:
        """Add a sequence below a node (-1 for the root); returns the node where it ends."""
        for token in sequence:
            child = self.children.get((node, token))
            if child is None:
                child = len(self.tokens)
                self.children[node, token] = child
                self.tokens.append(token)
                self.parents.append(node)
            node = child
        return node

    def insert_question(self, question: EncodedQuestion) -> dict[Tokens, int]:
        """Add a question; returns the node of each of its places, where logits are read."""
        nodes: dict[Tokens, int] = {(): self.insert(question.prompt)}
        for place in terms_of(question).places[1:]:
            nodes[place] = self.insert(place[-1:], nodes[place[:-1]])
        self.scored.update(nodes.values())
        return nodes


@dataclass
class PackedQuestions:
    """
    Questions laid out as tries for one forward pass; pure tensors, good for any number of passes.

    Args:
        input_ids (`torch.Tensor`): shape `(rows, length)`.
        position_ids (`torch.Tensor`): shape `(rows, length)`.
        visible (`torch.Tensor`): bool, shape `(rows, 1, length, length)`: which token attends to which.
        keep (`int`): the last `keep` positions of each row hold everything that is read.
        reads (`Reads`): what is read there.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    visible: torch.Tensor
    keep: int
    reads: Reads

    def inputs(self, device: torch.device, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        """What the model's forward takes, with a mask to be added in the model's dtype."""
        hidden = torch.zeros(self.visible.shape, dtype=dtype).masked_fill(~self.visible, torch.finfo(dtype).min)
        return {
            "input_ids": self.input_ids.to(device),
            "position_ids": self.position_ids.to(device),
            "attention_mask": hidden.to(device),
        }


def pack(questions: Sequence[EncodedQuestion], row_tokens: int = ROW_TOKENS) -> PackedQuestions:
    """
    Lay questions out as tries of at most `row_tokens` tokens each (a longer question has a row of its own).

    Args:
        questions (`Sequence[EncodedQuestion]`): at least one.
        row_tokens (`int`): tokens per row.

    Returns:
        `PackedQuestions`: on the CPU.
    """
    rows: list[_Row] = []
    places: list[tuple[int, dict[Tokens, int]]] = [(0, {})] * len(questions)
    for run in batches(questions, row_tokens):
        rows.append(_Row([], [], {}, set()))
        for number in run:
            places[number] = (len(rows) - 1, rows[-1].insert_question(questions[number]))

    length = max(len(row.tokens) for row in rows)
    keep = max(len(row.scored) for row in rows)
    input_ids = torch.zeros(len(rows), length, dtype=torch.long)
    position_ids = torch.zeros(len(rows), length, dtype=torch.long)
    visible = torch.eye(length, dtype=torch.bool).repeat(len(rows), 1, 1)
    columns: list[dict[int, int]] = []
    for index, trie in enumerate(rows):
        # Read positions last, so that logits_to_keep=keep covers them.
        order = sorted(range(len(trie.tokens)), key=lambda node: (node in trie.scored, node))
        column = {node: length - len(order) + place for place, node in enumerate(order)}
        columns.append(column)
        for node, (token, parent) in enumerate(zip(trie.tokens, trie.parents, strict=True)):
            here = column[node]
            input_ids[index, here] = token
            if parent >= 0:  # which was added before its children
                position_ids[index, here] = position_ids[index, column[parent]] + 1
                visible[index, here] |= visible[index, column[parent]]
    kept = [
        {place: row * keep - (length - keep) + columns[row][node] for place, node in nodes.items()}
        for row, nodes in places
    ]
    return PackedQuestions(input_ids, position_ids, visible[:, None], keep, reads_at(questions, kept))


def batches(questions: Sequence[EncodedQuestion], tokens: int) -> list[list[int]]:
    """
    Numbers of the questions in runs of at most `tokens` tokens each, or of one question; neighbours in the trie
    together, in as few runs as that takes, and these as even as can be (rows of a batch are padded to the longest).

    Args:
        questions (`Sequence[EncodedQuestion]`): at least one.
        tokens (`int`): tokens of a run, at the most; a picture counts as 64.
    """
    order = sorted(range(len(questions)), key=lambda n: questions[n].prompt)
    first, further = [], []  # what each question adds to a run that it begins, and to one that holds its neighbour
    previous: tuple[int, ...] = ()
    for number in order:
        question = questions[number]
        prompt, pictures = question.prompt, len(getattr(question, "images", ()))
        own = len(terms_of(question).places) - 1 + pictures * PICTURE_TOKENS
        shared = next(
            (i for i, (a, b) in enumerate(zip(prompt, previous, strict=False)) if a != b),
            min(len(prompt), len(previous)),
        )
        first.append(len(prompt) + own)
        further.append(len(prompt) + own - (0 if pictures else shared))
        previous = prompt

    def runs(limit: int) -> list[list[int]]:
        found: list[list[int]] = []
        used = 0
        for number, begin, add in zip(order, first, further, strict=True):
            if found and used + add <= limit:
                found[-1].append(number)
                used += add
            else:
                found.append([number])
                used = begin
        return found

    fewest = len(runs(tokens))
    return runs(bisect_left(range(tokens), True, key=lambda limit: len(runs(limit)) <= fewest))
