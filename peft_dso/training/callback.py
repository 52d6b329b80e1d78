"""What happens at the turns of transformers' training loop."""

from __future__ import annotations

from collections import deque
from typing import Any

from transformers import TrainerCallback

from ..objective.rewards import Said
from ..tuner import set_steering_strength


STATE_KEY = "DSOTrainer"  # in trainer_state.json
STOP_AFTER = 10  # steps in a row whose bias is looked at


class DSOCallback(TrainerCallback):
    """Ties the trainer's own state to the run of transformers' loop."""

    def __init__(self, trainer: Any) -> None:
        self.trainer = trainer
        self.begun = False
        self.biases: deque[float] = deque(maxlen=STOP_AFTER)
        self.said: list[list[Said]] = []  # since the last step, for each temperature

    @property
    def recent_bias(self) -> float:
        """The mean bias of the last steps; NaN before the first."""
        return sum(self.biases) / len(self.biases) if self.biases else float("nan")

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.biases.clear()
        self.trainer._spent.clear()
        self.trainer.ended_fair = False
        self.trainer.usual_least = 0.0
        self.trainer.scorer.decide(self.trainer.model, self.trainer.probe_rows())
        self.trainer.measure_units()
        set_steering_strength(self.trainer._dso_model, 1.0, "default")
        saved = state.stateful_callbacks.get(STATE_KEY)
        self.trainer.beta, self.trainer.neutral_weight = args.beta, args.neutral_coef
        self.trainer.reward_weight = 1.0
        for reward in self.trainer.counting_rewards() if self.begun else ():  # a second training begins anew
            reward.reset()
        self.begun = True
        if isinstance(saved, dict):
            self.biases.extend(saved.get("biases", ()))
            self.trainer.beta = saved["beta"]
            self.trainer.neutral_weight = saved.get("neutral_weight", self.trainer.neutral_weight)
            self.trainer.reward_weight = saved.get("reward_weight", 1.0)
            self.trainer.usual_least = saved.get("usual_least", 0.0)
            for reward, counts in zip(self.trainer.counting_rewards(), saved["fairness_rewards"], strict=True):
                reward.load_state_dict(counts)
        elif args.warm_start and self.trainer.fairness_reward is not None:
            self.trainer.observe_first_pass()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._micro_step = 0
        self.said = [[] for _ in self.trainer.counting_rewards()]

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """With gradient accumulation a step has several batches."""
        for said, reward in zip(self.said, self.trainer.counting_rewards(), strict=True):
            said += reward.latest

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.before_optimizer_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.trainer.after_optimizer_step(optimizer)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """End early where the answers of the last steps were fair already, at every temperature."""
        self.on_substep_end(args, state, control)
        biases = [
            reward.bias_of(said) for said, reward in zip(self.said, self.trainer.counting_rewards(), strict=True)
        ]
        # Where nothing was answered there is no bias to call fair.
        self.biases.append(max((bias if bias == bias else float("inf") for bias in biases), default=float("inf")))
        if len(self.biases) == STOP_AFTER and self.recent_bias < args.stop_bias:
            control.should_training_stop = self.trainer.ended_fair = True
