"""What the base says, computed once for each question."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..scoring import EncodedQuestion, PicturedQuestion, Scores


# Of distributions over the vocabulary that are kept: 5,000 of a small one, 1,000 of a large one.
KEPT_BYTES = 2**30


class Reference:
    """
    The base's answers and next-token distributions. The base does not change in training, so that what it said once is
    kept until [`KEPT_BYTES`] are used.

    Args:
        score (`Callable`): scores questions with the adapter off, without gradient.
        keep (`bool`): whether to keep anything. Where a forward pass is one of several processes' together it must not
            depend on what each of them has seen.
    """

    def __init__(self, score: Callable[[list[EncodedQuestion]], Scores], keep: bool = True) -> None:
        self.score = score
        self.keep = keep
        self.kept: dict[EncodedQuestion, tuple[torch.Tensor, torch.Tensor]] = {}
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
        place = {n: k for k, n in enumerate(fresh)}
        widest = max(max(len(q.answers) for q in encoded), 0 if scores is None else scores.answers.shape[1])
        answers, decisions = [], []
        for n, question in enumerate(encoded):
            if scores is not None and n in place:
                answer, decision = scores.answers[place[n]], scores.decision[place[n]]
                self._keep(question, answer, decision)
            else:
                answer, decision = self.kept[question]
            answers.append(torch.nn.functional.pad(answer.cpu(), (0, widest - len(answer)), value=-torch.inf))
            decisions.append(decision)
        device = decisions[fresh[0]].device if fresh else None
        return Scores(torch.stack(answers).to(device), torch.stack([d.to(device) for d in decisions]))

    def _keep(self, question: EncodedQuestion, answers: torch.Tensor, decision: torch.Tensor) -> None:
        size = 4 * decision.numel()
        if isinstance(question, PicturedQuestion) or question in self.kept or self.bytes + size > KEPT_BYTES:
            return
        self.kept[question] = (answers[: len(question.answers)].cpu(), decision.float().cpu())
        self.bytes += size
