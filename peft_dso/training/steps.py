"""What surrounds a step of the optimizer: its units, the l1 step, and the multipliers of what is capped."""

from __future__ import annotations

from typing import Any

import torch

from ..objective import updated_multiplier
from ..tuner import fisher_information, fisher_units, output_unit, shift_unit
from .adapter import PairSteps
from .logs import LoggingTrainer
from .units import ScaledSteps


RUNNING = 0.9  # share of the running mean that is left after a step


class SteppingTrainer(LoggingTrainer):
    """The part of the trainer that acts before and after each step of the optimizer."""

    pairs: PairSteps
    usual_least: float  # running mean of the least KL that fairness needs, 0 before there is one

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As TRL's; its steps are scaled (`step_unit`)."""
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        inner: Any = getattr(optimizer, "optimizer", optimizer)  # accelerate wraps it
        if self.args.step_unit != "plain" and not getattr(inner, "_dso_scaled", False):
            ScaledSteps(inner, self.pairs.scaled)
            inner._dso_scaled = True
        return optimizer

    def measure_units(self) -> None:
        """Find the units of the steps and of the l1 term. Called by the trainer's callback."""
        norms, unit = self.pairs.norms, self.args.step_unit
        with self.scorer.as_base(self.model):
            if unit == "fisher":
                information = fisher_information(norms, self.probe_runs())
                self.pairs.units = fisher_units(
                    [(self._mean(slope), self._mean(shift)) for slope, shift in information]
                )
            elif unit == "output":
                self.pairs.units = [(None, shift) for shift in output_unit(norms, self.run_probe)]
            elif unit == "gain":
                self.pairs.units = [(None, shift_unit(norm)) for norm in norms]

    def _mean(self, values: torch.Tensor) -> torch.Tensor:
        """Over the processes, so that all of them take the very same steps."""
        mean: torch.Tensor = self.accelerator.reduce(values.to(self.accelerator.device), "mean")
        return mean

    def before_optimizer_step(self) -> None:
        """Called by the trainer's callback."""
        self.pairs.before_step(self.state.global_step / max(self.state.max_steps, 1))

    def after_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The l1 term's proximal step, and one step of the multipliers. Called by the trainer's callback."""
        self.pairs.after_step(float(optimizer.param_groups[0]["lr"]))
        self._update_multipliers()
        zeros, l1 = self.pairs.sparsity()
        for name, value in (
            ("zero_neurons", zeros),
            ("l1", l1),
            ("beta", self.beta),
            ("reward_weight", self.reward_weight),
        ):
            self._metrics["train"][name].append(value)

    def _recent(self, name: str) -> float:
        """The mean of a KL over the batches since the multipliers' last step; NaN where there is none."""
        values = self._spent.get(name, [])
        return sum(values) / len(values) if values else float("nan")

    def _update_multipliers(self) -> None:
        """One step of the multipliers: of the KL and of neutral text towards their caps, of the reward to fairness."""
        args, kl = self.args, self._recent("kl" if self.args.rollouts == "enumerate" else "sampled_kl")
        caps = [] if args.max_kl is None else [(args.max_kl, args.max_kl)]
        rate = args.kl_rate * self.reward_weight  # a multiplier is worth what it is in units of the reward
        least = self._recent("least_kl")
        if args.max_kl_ratio is not None and least > 0:
            # What fairness needs differs much from batch to batch. The excess is that of this batch, in units of what
            # is usual: a mean of ratios would not be the ratio of the means.
            self.usual_least = least + RUNNING * ((self.usual_least or least) - least)
            caps.append((args.max_kl_ratio * least, args.max_kl_ratio * self.usual_least))
        over = 0.0  # by how much the caps are exceeded, in their own units
        if caps and kl == kl:
            cap, unit = min(caps)
            over = (kl - cap) / unit
            # TRL skips the reference at exactly 0 and could then never see the KL rise again.
            self.beta = max(1e-6, args.beta, updated_multiplier(self.beta, 1 + over, 1.0, rate))
        neutral = self._recent("neutral_kl")
        if args.max_neutral_kl is not None and neutral == neutral:
            weight = updated_multiplier(self.neutral_weight, neutral, args.max_neutral_kl, rate)
            self.neutral_weight = max(args.neutral_coef, weight)
            if caps and kl == kl:
                self._update_reward_weight(max(over, neutral / args.max_neutral_kl - 1))
        self._spent.clear()  # one batch of sampled answers may serve several steps: what it spent counts once

    def _update_reward_weight(self, over: float) -> None:
        """
        One step of the reward's multiplier: up where the answers are not fair yet and no cap binds; where one does, by
        how far below or above it the model is (`over`: 1 is twice the cap), so that it stays on average at the cap.
        """
        args = self.args
        if not self._callback.recent_bias >= args.stop_bias:  # fair, or not known yet
            return
        binds = self.beta > max(1e-6, args.beta) or self.neutral_weight > args.neutral_coef
        weight = self.reward_weight - args.kl_rate * (max(-1.0, min(over, 1.0)) if binds else -1.0)
        self.reward_weight = min(max(1.0, weight), args.max_reward_weight)
