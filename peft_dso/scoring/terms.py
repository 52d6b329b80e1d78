"""
Answers in all their forms as sums of exclusive events, none counted twice.

All forms of a question are one trie of tokens behind its prompt, whose labelled nodes end a form of an answer or of an
abstention. What a model writes belongs to the last labelled node that it passes: "physician assistant" is no
"physician". The probability of that is P(node) minus the P of the nearest labelled nodes below, and so is taken as the
probability of leaving the trie at the node, or on the way to those below: a sum of positive numbers, which neither
cancels nor has a gradient without bounds.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch

from .encode import EncodedQuestion
from .tokens import Tokens


@dataclass(frozen=True)
class Term:
    """
    One of the exclusive events that make up an answer.

    Args:
        column (`int`): index of the answer; the number of answers for an abstention.
        path (`tuple[int, ...]`): the tokens behind the prompt.
        stays (`tuple[int, ...]`): tokens of which none may follow, because the text would be another's then.
    """

    column: int
    path: Tokens
    stays: Tokens = ()

    def steps(self) -> Iterator[tuple[Tokens, int]]:
        """Which token is read behind which."""
        return ((self.path[:length], token) for length, token in enumerate(self.path))


@dataclass(frozen=True)
class AnswerTerms:
    """
    What is read behind a prompt.

    Args:
        places (`tuple[tuple[int, ...], ...]`): the tokens behind the prompt at whose end the next token is read, the
            prompt's own end `()` first, each after its own beginning.
        follows (`tuple[tuple[int, ...], ...]`): for each place, the tokens with which a form goes on.
        terms (`tuple[Term, ...]`): what the answers are sums of.
    """

    places: tuple[Tokens, ...]
    follows: tuple[Tokens, ...]
    terms: tuple[Term, ...]


@lru_cache(maxsize=4096)
def answer_terms(answers: tuple[tuple[Tokens, ...], ...], abstentions: tuple[Tokens, ...] = ()) -> AnswerTerms:
    """
    The exclusive events that the answers of a question are made of; the same for all questions with these answers.

    Args:
        answers (`tuple[tuple[tuple[int, ...], ...], ...]`): per answer the tokens of each of its forms.
        abstentions (`tuple[tuple[int, ...], ...]`): tokens of the named ways of not answering.

    Returns:
        `AnswerTerms`: the places and the terms.

    Raises:
        ValueError: a form has no token, or is one of two answers.
    """
    label: dict[Tokens, int] = {}
    for column, forms in enumerate((*answers, abstentions)):
        for form in forms:
            if not form:
                raise ValueError(f"Answer {column} has a form without a token.")
            if label.setdefault(form, column) != column:
                raise ValueError(f"The tokens {form} are a form of the answers {label[form]} and {column}.")

    def nearest(node: Tokens) -> Tokens:
        """The longest form that these tokens begin with; nothing if there is none."""
        return next((node[:length] for length in range(len(node), 0, -1) if node[:length] in label), ())

    # A form that begins with another of the same answer is counted with that one.
    kept = [form for form in label if label.get(nearest(form[:-1])) != label[form]]
    following: dict[Tokens, dict[int, None]] = {(): {}}
    for form in kept:
        for length, token in enumerate(form):
            following.setdefault(form[:length], {})[token] = None
    terms = [Term(label[form], form) for form in kept if form not in following]
    for node, tokens in following.items():
        if nearest(node):
            terms.append(Term(label[nearest(node)], node, tuple(tokens)))
    return AnswerTerms(tuple(following), tuple(map(tuple, following.values())), tuple(terms))


@dataclass
class Reads:
    """
    What is read from the logits of a batch.

    Args:
        places (`torch.Tensor`): shape `(places,)`: indices into the kept positions of all rows laid end to end.
        decision (`torch.Tensor`): shape `(questions,)`: the place where each prompt ends.
        steps (`torch.Tensor`): shape `(tokens, 3)`: term, place, token that is read there.
        leaves (`torch.Tensor`): shape `(leaves, 2)`: term, place where it leaves the trie.
        stays (`torch.Tensor`): shape `(tokens, 2)`: index of a leave, token that would not leave.
        owners (`torch.Tensor`): shape `(terms, 2)`: question, column of the answer; the last column is abstention.
        answers (`int`): the largest number of answers of a question.
        branches (`torch.Tensor`): shape `(branches, 3)`: question, place behind the beginning of a form, column of
            what is said there that goes on with no form.
        ways (`torch.Tensor`): shape `(tokens, 3)`: branch, place, token that is read there on the way to the branch.
        follows (`torch.Tensor`): shape `(tokens, 3)`: branch, token with which a form goes on there, its column.
    """

    places: torch.Tensor
    decision: torch.Tensor
    steps: torch.Tensor
    leaves: torch.Tensor
    stays: torch.Tensor
    owners: torch.Tensor
    answers: int
    branches: torch.Tensor
    ways: torch.Tensor
    follows: torch.Tensor


def terms_of(question: EncodedQuestion) -> AnswerTerms:
    """What is read behind the prompt of a question."""
    return answer_terms(question.answers, question.abstentions)


def reads_at(questions: Sequence[EncodedQuestion], kept: Sequence[Mapping[Tokens, int]]) -> Reads:
    """
    What is read of a batch of questions, once it is known where.

    Args:
        questions (`Sequence[EncodedQuestion]`): at least one.
        kept (`Sequence[Mapping[tuple[int, ...], int]]`): for each question the kept position of each of its places.

    Returns:
        `Reads`: on the CPU.
    """
    widest = max(len(question.answers) for question in questions)
    place_of: dict[int, int] = {}
    decision: list[int] = []
    steps: list[tuple[int, ...]] = []
    leaves: list[tuple[int, ...]] = []
    stays: list[tuple[int, ...]] = []
    owners: list[tuple[int, ...]] = []
    branches: list[tuple[int, ...]] = []
    ways: list[tuple[int, ...]] = []
    follows: list[tuple[int, ...]] = []
    for number, (question, where) in enumerate(zip(questions, kept, strict=True)):
        at = {node: place_of.setdefault(position, len(place_of)) for node, position in where.items()}
        decision.append(at[()])
        asked, column = terms_of(question), 0
        for node, tokens in zip(asked.places[1:], asked.follows[1:], strict=True):
            ways += [(len(branches), at[node[:length]], token) for length, token in enumerate(node)]
            follows += [(len(branches), token, column + n) for n, token in enumerate(tokens)]
            column += len(tokens) + 1
            branches.append((number, at[node], column - 1))
        for term in asked.terms:
            steps += [(len(owners), at[node], token) for node, token in term.steps()]
            if term.stays:
                stays += [(len(leaves), token) for token in term.stays]
                leaves.append((len(owners), at[term.path]))
            owners.append((number, widest if term.column == len(question.answers) else term.column))

    def table(rows: Sequence[tuple[int, ...]], width: int) -> torch.Tensor:
        return torch.tensor(rows, dtype=torch.long).view(-1, width)

    return Reads(
        torch.tensor(list(place_of), dtype=torch.long),
        torch.tensor(decision, dtype=torch.long),
        table(steps, 3),
        table(leaves, 2),
        table(stays, 2),
        table(owners, 2),
        widest,
        table(branches, 3),
        table(ways, 3),
        table(follows, 3),
    )


def read_answers(log_probs: torch.Tensor, reads: Reads) -> torch.Tensor:
    """
    Log-probabilities of the answers; differentiable, with finite gradients.

    Args:
        log_probs (`torch.Tensor`): of the next token at each place, shape `(places, vocabulary)`.
        reads (`Reads`): what is read of them.

    Returns:
        `torch.Tensor`: shape `(questions, answers + 1)`, the last column the named abstentions; -inf where there is
        none.
    """
    device = log_probs.device
    term, place, token = reads.steps.to(device).unbind(1)
    values = log_probs.new_zeros(len(reads.owners)).index_put((term,), log_probs[place, token], accumulate=True)
    if len(reads.leaves):
        term, place = reads.leaves.to(device).unbind(1)
        leave, token = reads.stays.to(device).unbind(1)
        elsewhere = log_probs[place].index_put((leave, token), log_probs.new_full((), -torch.inf))
        values = values.index_put((term,), elsewhere.logsumexp(-1), accumulate=True)
    question, column = reads.owners.to(device).unbind(1)
    shape = (len(reads.decision), reads.answers + 1)
    owner = question * shape[1] + column
    # The log of a sum of exponentials over the terms of each answer, as many as there may be.
    most = values.new_full((shape[0] * shape[1],), -torch.inf).scatter_reduce(0, owner, values.detach(), "amax")
    present = torch.zeros_like(most, dtype=torch.bool).index_put(
        (owner,), torch.ones((), dtype=torch.bool, device=device)
    )
    most = torch.where(most.isfinite(), most, 0.0)
    total = torch.zeros_like(most).index_put((owner,), (values - most[owner]).exp(), accumulate=True)
    summed = most + total.clamp(min=torch.finfo(total.dtype).tiny).log()  # tiny where a model rules an answer out
    return summed.masked_fill(~present, -torch.inf).view(shape)


def read_branches(log_probs: torch.Tensor, reads: Reads) -> torch.Tensor:
    """
    What is said behind the beginnings of forms; differentiable, with finite gradients.

    Args:
        log_probs (`torch.Tensor`): of the next token at each place, shape `(places, vocabulary)`.
        reads (`Reads`): what is read of them.

    Returns:
        `torch.Tensor`: shape `(questions, events, 2)`: log-probabilities of each token with which a form goes on, and
        of all others together, given the beginning, and of beginning and event together; -inf where a question has
        fewer events than the widest.
    """
    device = log_probs.device
    number, place, other_column = reads.branches.to(device).unbind(1)
    branch, before, token = reads.ways.to(device).unbind(1)
    begun = log_probs.new_zeros(len(number)).index_put((branch,), log_probs[before, token], accumulate=True)
    branch, token, column = reads.follows.to(device).unbind(1)
    on = log_probs[place[branch], token]
    others = 1 - torch.zeros_like(begun).index_put((branch,), on.exp(), accumulate=True)
    other = others.clamp(min=torch.finfo(others.dtype).eps).log()  # below that the sum is rounding
    given, together = torch.cat([on, other]), torch.cat([begun[branch] + on, begun + other])
    events = 1 + int(reads.branches[:, 2].max()) if len(reads.branches) else 0
    return log_probs.new_full((len(reads.decision), events, 2), -torch.inf).index_put(
        (torch.cat([number[branch], number]), torch.cat([column, other_column])), torch.stack([given, together], -1)
    )
