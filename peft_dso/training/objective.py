"""The objective of a step, on what the model and its base say."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from accelerate.utils import gather_object
from torch import nn

from ..objective import (
    EnumeratedReward,
    FairnessReward,
    answer_shares,
    answers_kl,
    given_or_not,
    kl_divergence,
    lost_kl,
    occupation_weights,
)
from ..objective.rewards import Said
from ..scoring import EncodedQuestion, Scores, score
from .config import DSOTrainerConfig
from .publish import PublishingTrainer
from .scorer import Scorer
from .units import next_token_log_probs


PROBE_TEXTS = 64  # neutral texts on which the units are measured


class ObjectiveTrainer(PublishingTrainer):
    """The part of the trainer that computes its loss."""

    args: DSOTrainerConfig
    beta: float  # the KL's multiplier, TRL's; changed by the cap
    neutral_weight: float  # that of the KL on neutral text
    reward_weight: float  # that of the reward
    enumerated: EnumeratedReward
    fairness_reward: Any
    scorer: Scorer
    neutral: list[tuple[int, ...]]
    train_dataset: Any
    _micro_step: int
    _noted: list[tuple[str, torch.Tensor, int]]  # since the last loss: name, sum, count
    _spent: dict[str, list[float]]  # by name the KLs of the batches since the multipliers' last step
    _evaluated: list[Said]

    def _generator(self, purpose: str, micro_step: int) -> torch.Generator:
        """Random numbers that depend on the seed and the step alone: the same on all ranks and after a resume."""
        seed = random.Random(f"{purpose} {self.args.seed} {self.state.global_step} {micro_step}").getrandbits(63)
        return torch.Generator().manual_seed(seed)

    def _draw(self, purpose: str, population: Sequence[Any], size: int) -> list[Any]:
        """This process's share of a draw for this step; the same after a resume."""
        if not population:
            return []
        rank, processes = self.accelerator.process_index, self.accelerator.num_processes
        generator = self._generator(purpose, self._micro_step)
        chosen = torch.randint(len(population), (size * processes,), generator=generator)
        return [population[i] for i in chosen[rank * size : (rank + 1) * size].tolist()]

    def _draw_neutral(self) -> list[EncodedQuestion]:
        """Every beginning of some neutral texts: laid out as tries they share all of their tokens."""
        texts = self._draw("neutral", self.neutral, self.args.neutral_batch_size)
        if self.scorer.packs:
            return [EncodedQuestion(text[:end], ()) for text in texts for end in range(1, len(text) + 1)]
        generator = self._generator("beginnings", self._micro_step)
        return [
            EncodedQuestion(text[: int(end) + 1], ())
            for text in texts
            for end in torch.randint(len(text), (2,), generator=generator)
        ]

    def probe_rows(self) -> list[dict[str, Any]]:
        """Rows such as those to come, the same on every process."""
        return [*self.train_dataset.rows[:48], *self.retain_rows[:16]]

    def run_probe(self) -> None:
        """Run the model on those, and on some of the neutral texts."""
        texts = [EncodedQuestion(text, ()) for text in self.neutral[:16]]
        self.scorer.score(self.model, [*map(self.scorer.encode, self.probe_rows()), *texts])

    def probe_runs(self) -> Iterator[Callable[[], torch.Tensor]]:
        """What the model says next in more of those texts, and to those rows, a few at a time."""
        rows = [self.scorer.encode(row) for row in self.probe_rows()]
        # What is said next is asked of the prompt alone: without the answers, and without a row for each.
        rows = [EncodedQuestion(row.prompt, ()) if isinstance(row, EncodedQuestion) else row for row in rows]
        asked = (rows[n : n + 8] for n in range(0, len(rows), 8))
        yield from (partial(next_token_log_probs, self.model, text) for text in self.neutral[:PROBE_TEXTS])
        yield from (lambda few=few: self.scorer.score(self.model, few).decision for few in asked)

    @property
    def _dso_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _enumerated_loss(
        self, model: nn.Module, rows: list[dict[str, Any]], retained: list[dict[str, Any]], mode: str
    ) -> torch.Tensor:
        """
        -reward_weight (E[r] - keep_coef KL_kept) + beta KL + retain_coef KL_retained + neutral_weight KL_neutral, the
        expectation over the named answers exact. With `kl_target="fair"` the KL of ambiguous questions is that to the
        fair distribution nearest to the base, up to a constant (see [`~peft_dso.objective.nearest_fair`]).
        """
        rows, settled = ([row for row in rows if (row.get("right") is None) == open_] for open_ in (True, False))
        retained = [*settled, *retained]
        neutral = self._draw_neutral() if mode == "train" else []
        encoded = [*map(self.scorer.encode, [*rows, *retained]), *neutral]
        scores = self.scorer.score(model, encoded)
        base = self.scorer.base(self.model, encoded)  # one pass for all: every pass reads all weights
        n, m = len(rows), len(rows) + len(retained)
        loss = scores.decision.new_zeros(())
        counts = occupation_weights(gather_object([row["occupation"] for row in rows]))
        if rows:
            loss = self._open_loss(rows, scores[:n], base[:n], counts)
        else:  # the other processes wait for what this one counts
            self.enumerated.observe([], scores.answers[:0])
        if retained:
            kl = self._kl(scores[n:m], base[n:m], "retain_kl")
            loss = loss + self.args.retain_coef * kl.mean() + self._lost_right(retained, scores[n:m], base[n:m])
        if settled:
            right = torch.tensor([row["right"] for row in settled], device=scores.answers.device)
            self._note("accuracy", (scores.answers[n : n + len(settled)].argmax(-1) == right).float())
        if neutral:
            kl = self._kl(scores[m:], base[m:], "neutral_kl")
            # The mean over the tokens of all processes, whose texts are of different lengths.
            tokens = self.accelerator.reduce(torch.tensor(float(len(kl)), device=kl.device), "mean")
            loss = loss + self.neutral_weight * kl.sum() / tokens
        self._log_bias(mode)
        return loss

    def _open_loss(
        self, rows: list[dict[str, Any]], scores: Scores, base: Scores, counts: Mapping[str, float]
    ) -> torch.Tensor:
        """-reward_weight (E[r] - keep_coef KL_kept) + beta KL of open questions; `counts` weights the occupations."""
        log_p = scores.answers[:, : max(len(row["answers"]) for row in rows)]
        of_base = base.answers[:, : log_p.shape[1]].to(log_p.device)
        expected = self.enumerated(rows, log_p, of_base)
        kl = self._kl(scores, base, "kl")
        tilt, least = self.enumerated.tilt(rows, log_p, of_base)
        if self.args.kl_target == "fair":
            kl = kl - tilt
        weight = torch.tensor([counts[row["occupation"]] for row in rows], device=log_p.device)
        self._note("reward", expected)
        self._note("least_kl", least)
        self._note("abstention", 1 - log_p.exp().sum(-1))
        loss = -self.reward_weight * (weight * expected).mean() + self.beta * kl.mean()
        if self.args.abstain_reward is None:
            kl = kl_divergence(given_or_not(log_p), given_or_not(of_base))
            loss = loss + self._keep("given_kl", kl, len(rows))
        return loss

    def _lost_right(self, rows: Sequence[Mapping[str, Any]], scores: Scores, base: Scores) -> torch.Tensor:
        """What the right answers of retained rows lose of their share of the named ones."""
        known = [n for n, row in enumerate(rows) if row.get("right") is not None and row.get("answers")]
        if not known:
            return scores.answers.new_zeros(())
        device, most = scores.answers.device, max(len(rows[n]["answers"]) for n in known)
        right = torch.tensor([rows[n]["right"] for n in known], device=device).unsqueeze(-1)
        shares = (x.answers[known, :most].to(device).log_softmax(-1).gather(1, right) for x in (scores, base))
        return self._keep("lost_right_kl", lost_kl(*(share.squeeze(-1) for share in shares)), len(rows))

    def _keep(self, name: str, kl: torch.Tensor, rows: int) -> torch.Tensor:
        """
        A KL of what is to be kept, in units of the reward's weight: it grows with what the reward asks for. The mean
        is over all `rows`, of which other processes have as many, also those that have nothing to keep.
        """
        self._note(name, kl)
        return self.reward_weight * self.args.keep_coef * kl.sum() / rows

    def _kl(self, scores: Scores, base: Scores, name: str) -> torch.Tensor:
        """KL(steered || base) of what is said to each question, as far as it decides the answer."""
        kl = answers_kl(scores, base.to(scores.decision.device))
        self._note(name, kl)
        return kl

    def _note(self, name: str, values: torch.Tensor) -> None:
        """A metric of this process's share of the batch, for [`_log_noted`]."""
        self._noted.append((name, values.detach().sum(), len(values)))

    def _log_noted(self, mode: str) -> None:
        """Log the means over the processes, of which some may have no value, or more than others."""
        totals: dict[str, list[float]] = {}
        for name, value, count in gather_object([(name, float(value), count) for name, value, count in self._noted]):
            total = totals.setdefault(name, [0.0, 0])
            total[0], total[1] = total[0] + value, total[1] + count
        for name, (value, count) in totals.items():
            self._metrics[mode][name].append(value / count)
            if mode == "train":
                self._spent.setdefault(name, []).append(value / count)
        self._noted = []

    def observe_first_pass(self) -> None:
        """Count what the model says to all training questions (`warm_start`); each process scores a share of them."""
        rows = [*self.train_dataset][self.accelerator.process_index :: self.accelerator.num_processes]
        log_p = torch.full((len(rows), max(len(row["answers"]) for row in rows)), -torch.inf)
        encoded = [self.scorer.encode(row) for row in rows]
        for numbers, scores in score(self.model, encoded, packed=bool(self.scorer.packs)):
            log_p[numbers, : scores.answers.shape[1]] = scores.answers.float().cpu()
        for first in self._first_counts():
            first.observe(rows, log_p)

    def _first_counts(self) -> list[EnumeratedReward]:
        """What counts the answers of a first pass into [`counting_rewards`]."""
        if self.args.rollouts == "enumerate":
            return [self.enumerated]
        found = []
        for reward in self.counting_rewards():
            found.append(EnumeratedReward(reward.groups, [self.args.temperature], reward.abstain_reward))
            found[-1].counts = [reward]
        return found

    def counting_rewards(self) -> list[FairnessReward]:
        """All rewards whose counts matter: the one that pays sampled answers, or one per temperature."""
        if self.args.rollouts == "enumerate":
            return self.enumerated.counts
        return [] if self.fairness_reward is None else [self.fairness_reward]

    def _log_bias(self, mode: str) -> None:
        """Per-occupation bias and gap of the answers observed last; in an evaluation, of all of its answers so far."""
        if self.fairness_reward is None:
            return
        if mode == "eval":
            self._evaluated += self.fairness_reward.latest
        said = self._evaluated if mode == "eval" else self.fairness_reward.latest
        if not said:
            return
        shares = answer_shares([(name, values) for name, values, _ in said])
        if not shares:
            return  # abstentions alone
        found = {"per_occupation_bias": self.fairness_reward.bias_of(said)}
        groups = self.fairness_reward.groups  # those of the questions may stand in another order
        if set(groups) == {"pro", "anti"}:
            pro = groups.index("pro")
            found["stereotype_gap"] = sum(2 * values[pro] - 1 for values in shares.values()) / len(shares)
        for key, value in found.items():
            self._metrics[mode][key] = [value] if mode == "eval" else [*self._metrics[mode][key], value]
