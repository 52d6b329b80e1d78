"""What the base says, computed once for each question."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..scoring import EncodedQuestion, PicturedQuestion, Scores


# Of distributions over the vocabulary that are kept: 5,000 of a small one, 1,000 of a large one.
KEPT_BYTES = 2**30


class Reference:
    """
    What the base says. The base does not change in training, so that what it said once is
    kept until [`KEPT_BYTES`] are used.

    Args:
        score (`Callable`): scores questions with the adapter off, without gradient.
        keep (`bool`): whether to keep anything. Where a forward pass is one of several processes' together it must not
            depend on what each of them has seen.
    """

    def __init__(self, score: Callable[[list[EncodedQuestion]], Scores], keep: bool = True) -> None:
        self.score = score
        self.keep = keep
        self.kept: dict[EncodedQuestion, Scores] = {}
        self.bytes = 0

    def __call__(self, encoded: Sequence[EncodedQuestion]) -> Scores:
        """
        What the base says to some questions.

        Args:
            encoded (`Sequence[EncodedQuestion]`): at least one.

        Returns:
            `Scores`: in their order.
        """
        if not self.keep:
            return self.score(list(encoded))
        known = [not isinstance(q, PicturedQuestion) and q in self.kept for q in encoded]
        fresh = [n for n, there in enumerate(known) if not there]
        scores = self.score([encoded[n] for n in fresh]) if fresh else None
        found = {n: self.kept[encoded[n]] for n, there in enumerate(known) if there}
        if scores is not None:
            found = {n: kept.to(scores.answers.device) for n, kept in found.items()}
            for k, n in enumerate(fresh):
                found[n] = scores[k : k + 1]
                self._keep(encoded[n], found[n])
        return Scores.joined([found[n] for n in range(len(encoded))])

    def _keep(self, question: EncodedQuestion, scores: Scores) -> None:
        size = 4 * (scores.decision.numel() + scores.branches.numel())
        if isinstance(question, PicturedQuestion) or question in self.kept or self.bytes + size > KEPT_BYTES:
            return
        self.kept[question] = scores.to("cpu")
        self.bytes += size
