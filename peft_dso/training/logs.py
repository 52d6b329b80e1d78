"""What a training says of itself."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Optional

import torch
from pandas import DataFrame
from transformers.utils import logging

from ..objective import imbalance
from .callback import STOP_AFTER
from .objective import ObjectiveTrainer


logger = logging.get_logger(__name__)


class LoggingTrainer(ObjectiveTrainer):
    """The part of the trainer that logs."""

    ended_fair = False  # before its last step, since the answers were fair
    _callback: Any  # knows the biases of the last steps

    def why_it_ended(self) -> str:
        """In a sentence, how far the training has come and what bound it."""
        logged = [entry for entry in self.state.log_history if "per_occupation_bias" in entry]
        since = logged[-1].get("step", 0) - STOP_AFTER if logged else 0
        last = [entry for entry in logged if entry.get("step", 0) > since]  # one may stand for all of these steps
        bias, exact, sampled, least = (
            sum(values) / len(values) if (values := [entry[name] for entry in last if name in entry]) else float("nan")
            for name in ("per_occupation_bias", "kl", "sampled_kl", "least_kl")
        )
        if self.ended_fair:  # what it was judged by, whatever is logged
            bias = self._callback.recent_bias
        spent = [f"bias {bias:.3f} on the last batches"] if last else []
        if least > 0:
            spent.append(f"KL {exact / least:.1f} times the least")
        else:
            spent += [f"KL {kl:.3f}" for kl in (exact, sampled) if kl == kl]
        held = []
        if self.beta > self.args.beta * 1.01:
            held.append(f"the cap on the KL was holding it (multiplier {self.beta:.2f})")
        if self.neutral_weight > self.args.neutral_coef * 1.01:
            held.append(f"neutral text was holding it (weight {self.neutral_weight:.2f})")
        return (
            f"Ended after {self.state.global_step} of {self.state.max_steps} steps"
            + (", since the answers were fair (stop_bias)" if self.ended_fair else "")
            + (": " + ", ".join(spent) if spent else "")
            + (", and " + " and ".join(held) if held else "")
            + "."
            + (" Nothing was learned: all neurons are zero." if self.pairs.sparsity()[0] == 1 else "")
        )

    def worst_occupations(self, most: int = 5) -> list[tuple[str, list[float]]]:
        """The occupations whose latest counted answers are the most unequal, and the groups' shares of each."""
        reward = self.fairness_reward
        shares = {} if reward is None else {name: reward.shares(name) for name in reward.counts}

        def bias(item: tuple[str, list[float]]) -> float:
            return float(imbalance(torch.tensor(item[1]), torch.tensor(reward.fair(item[0]))))

        return sorted(shares.items(), key=bias, reverse=True)[:most]

    def log(self, logs: dict[str, float], start_time: Optional[float] = None) -> None:
        """Log the metrics of TRL and of the objective, and at level INFO the worst occupations."""
        super().log(logs, start_time)
        worst = self.worst_occupations()
        if worst and self.accelerator.is_main_process:
            groups = self.fairness_reward.groups
            lines = (
                f"{name}: " + ", ".join(f"{g} {s:.2f}" for g, s in zip(groups, shares, strict=True))
                for name, shares in worst
            )
            logger.info("Most unequal occupations: " + "; ".join(lines))
            table = DataFrame(
                [(self.state.global_step, name, *shares) for name, shares in worst],
                columns=["step", "occupation", *groups],
            )
            for tracker in self._trackers():
                tracker.log({"worst_occupations": tracker.Table(dataframe=table)})

    def _trackers(self) -> list[Any]:
        """The modules of the trackers that take tables, as TRL uses them for its completions."""
        trackers = [import_module(name) for name in ("wandb", "trackio") if name in (self.args.report_to or ())]
        return [t for t in trackers if t.__name__ != "wandb" or t.run is not None]
