"""Batches made of whole occupations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Optional

import torch
from torch.utils.data import Sampler


class OccupationSampler(Sampler[int]):
    """
    Blocks of `size` questions of one occupation, in random order, each occupation as often as any other.

    Questions of one pair stand together, so that what differs within it (the order of two people, say) is balanced in
    a block, and a common beginning is computed once. Whatever the number of questions of an occupation, its share of
    the stream is the same, which is the assumption of the paper's theorem 1. The order depends on the seed and the
    epoch alone, not on the number of processes.

    Args:
        occupations (`Sequence[str]`): the occupation of each row.
        size (`int`): questions per block.
        batch_size (`int`): distinct questions per batch over all processes; the last, incomplete batch of an epoch is
            filled with blocks of the next one.
        pairs (`Sequence[Optional[str]]`, *optional*): the pair of each row; `None` for a row of its own.
        mini_repeat_count (`int`, defaults to 1): how often each question is repeated in a row (TRL's generations).
        repeat_count (`int`, defaults to 1): how often each batch is repeated (TRL's steps per generation).
        shuffle (`bool`, defaults to `True`): whether the order is random.
        seed (`int`, defaults to 0): of the order.
    """

    def __init__(
        self,
        occupations: Sequence[str],
        size: int,
        batch_size: int,
        pairs: Optional[Sequence[Optional[str]]] = None,
        mini_repeat_count: int = 1,
        repeat_count: int = 1,
        shuffle: bool = True,
        seed: int = 0,
    ) -> None:
        # Per occupation its pairs, each a list of rows.
        self.rows: dict[str, dict[str | int, list[int]]] = {}
        for row, name in enumerate(occupations):
            pair = None if pairs is None else pairs[row]
            self.rows.setdefault(name, {}).setdefault(row if pair is None else pair, []).append(row)
        self.size = size
        self.batch_size = batch_size
        self.mini_repeat_count = mini_repeat_count
        self.repeat_count = repeat_count
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0
        # An epoch shows each question of the largest occupation once.
        rounds = -(-max(sum(map(len, groups.values())) for groups in self.rows.values()) // size)
        self.batches = -(-rounds * len(self.rows) * size // batch_size)

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader, so that each epoch has an order of its own."""
        self.epoch = epoch

    def _order(self, n: int, generator: torch.Generator) -> list[int]:
        return torch.randperm(n, generator=generator).tolist() if self.shuffle else list(range(n))

    def _stream(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + 1_000_003 * self.epoch)
        names = sorted(self.rows)
        waiting: dict[str, list[int]] = {name: [] for name in names}
        while True:
            for index in self._order(len(names), generator):
                name = names[index]
                while len(waiting[name]) < self.size:
                    groups = list(self.rows[name].values())
                    waiting[name] += [row for i in self._order(len(groups), generator) for row in groups[i]]
                yield from waiting[name][: self.size]
                del waiting[name][: self.size]

    def __iter__(self) -> Iterator[int]:
        stream = self._stream()
        for _ in range(self.batches):
            batch = [next(stream) for _ in range(self.batch_size)]
            for _ in range(self.repeat_count):
                for row in batch:
                    yield from [row] * self.mini_repeat_count

    def __len__(self) -> int:
        return self.batches * self.batch_size * self.mini_repeat_count * self.repeat_count
