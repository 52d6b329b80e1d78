"""Lays the strengths of a batch's requests out over its tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


class Strengths:
    """
    The strengths of the next forward pass, one per token and slot.

    Args:
        tokens (`int`): the most tokens of a forward pass.
        slots (`int`): number of slots.
        device (`torch.device`): where the model is.

    Attributes:
        buffer (`torch.Tensor`): shape `(tokens, slots)`, float32, contiguous; written in place.
    """

    def __init__(self, tokens: int, slots: int, device: torch.device) -> None:
        self.buffer = torch.zeros(tokens, slots, dtype=torch.float32, device=device)
        self._written = 0  # rows that may hold something else than 0

    @property
    def idle(self) -> bool:
        """Whether nobody is steered in the next forward pass."""
        return not self._written

    def write(self, rows: np.ndarray, counts: Sequence[int] | np.ndarray) -> int:
        """
        Write the strengths of a batch; nothing is copied while nobody is steered.

        Args:
            rows (`np.ndarray`): strengths of each request, shape `(requests, slots)`, float32, in batch order.
            counts (`Sequence[int]`): how many tokens each request has in this forward pass.

        Returns:
            `int`: the number of steered tokens.
        """
        steered = rows.any(axis=1)
        if not steered.any():
            if self._written:
                self.buffer[: self._written].zero_()
                self._written = 0
            return 0
        from vllm.utils.torch_utils import async_tensor_h2d

        tokens = np.repeat(rows, counts, axis=0)
        # Pinned memory of its own for each step: the next step is prepared while this copy runs.
        async_tensor_h2d(tokens, out=self.buffer[: len(tokens)])
        if self._written > len(tokens):
            self.buffer[len(tokens) : self._written].zero_()
        self._written = len(tokens)
        return int(np.dot(steered, counts))
