"""Configuration of the DSO trainer."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Optional

import torch
from trl import RLOOConfig


FISHER_RATE = 0.028  # the learning rate in units of what a step costs
CHOICES = {
    "rollouts": ("enumerate", "sample"),
    "training_strength": ("one", "uniform"),
    "kl_target": ("fair", "base"),
    "step_unit": ("fisher", "output", "gain", "plain"),
}


@dataclass
class DSOTrainerConfig(RLOOConfig):
    """
    Configuration of [`DSOTrainer`]: TRL's `RLOOConfig` with the settings of the paper's objective

        maximise  E[r(y)] - l1_coef (|a|_1 + |b|_1)   subject to   KL(steered || base) <= max_kl

    Args:
        rollouts (`str`, defaults to `"enumerate"`):
            `"enumerate"`: the expectation over the answers that the dataset names is exact, one forward pass per
            question. `"sample"`: TRL's generation and leave-one-out baseline, for free text. Both read images.
        questions_per_occupation (`int`, defaults to 8):
            Questions of one occupation that stand together in a batch, so that its imbalance is the current model's.
            `per_device_train_batch_size` must be a multiple of it. Occupations with fewer questions repeat some. Make
            it a multiple of the size of pairs: half a pair does not tell a preference for a place from a stereotype.
        abstain_reward (`float`, *optional*):
            Reward of an answer that is none of the named ones. `None` (the default) looks at the named answers only:
            enumerated, their probabilities count as if they summed to 1; sampled, other answers are left out. -1 moves
            probability to the named answers; the paper's formula reads as +1, which rewards refusing.
        reward_smoothing (`float`, defaults to 0.3):
            Imbalance of an occupation below which its reward shrinks in proportion; 0 is the sign (the paper).
        decoding_temperatures (`list[float]`, defaults to `[1.0, 0.2]`):
            Temperatures at which the answers are to be fair, each in (0, 1]; the objective is the mean over them. 1
            counts probabilities, which is what sampling shows; lower ones lean towards first choices, which is what
            greedy decoding shows. Only for `rollouts="enumerate"`.
        reward_memory (`float`, defaults to 0):
            Share of the earlier answers that still counts towards the majority of an occupation, in [0, 1).
        question_share (`float`):
            Share of the reward, in [0, 1], that is taken from the imbalance of each question's own answers in place of
            its occupation's. 0 is the paper: leans of different questions may cancel. Above 0 no single question is
            to lean; where the answers have a place (`first`), by no more than the base prefers the place, which is no
            stereotype. Only for `rollouts="enumerate"`.
        warm_start (`bool`, defaults to `False`):
            Count what the model says to all training questions before the first step, so that the first majorities do
            not hang on one batch. Needs `reward_memory` above 0, or the memory of a `FairnessReward` of your own.
        kl_target (`str`, defaults to `"fair"`):
            What the KL of an ambiguous question is taken to, with `rollouts="enumerate"`: `"fair"`, the fair
            distribution nearest to the base, so that being held costs no fairness; or `"base"` (the paper). On
            retained rows and neutral text it is always the base.
        beta (`float`):
            Weight of that KL: its multiplier at the start, below which it never falls.
        max_kl_ratio (`float`, *optional*):
            The cap epsilon on KL(steered || base), in multiples of the least KL that fairness needs on the questions
            of the last steps (see [`~peft_dso.objective.nearest_fair`]), which differs from model to model. `beta`
            rises while the KL is above it, and falls back below it. Only for `rollouts="enumerate"`.
        max_kl (`float`, *optional*):
            The same in nats; where both are given the lower one binds.
        kl_rate (`float`, defaults to 0.1):
            How fast a multiplier moves: its change per step at twice the cap, in units of the reward's weight.
        retain_coef (`float`):
            Weight of the KL to the base on rows whose answer must not change: the unambiguous rows of the training set
            and the `retain_dataset`. 0 leaves this KL out.
        retain_batch_size (`int`):
            How many of those rows go into each step, per device.
        keep_coef (`float`, defaults to 0.3):
            Weight, in units of the reward's, of the KL of what fairness is not to cost: on rows with a right answer
            (those of `retain_coef`) that answer's share of the named ones, where it falls below the base's (what it
            gains is free), and on ambiguous rows how often any of the answers is given (with `abstain_reward=None`).
            The KL of `retain_coef` hardly sees a share of the answers where most of what a model says is none. 0
            leaves it out (the paper). Only for `rollouts="enumerate"`.
        neutral_coef (`float`):
            Weight, at the least, of the KL to the base at the tokens of neutral texts. 0 leaves them out. Only for
            `rollouts="enumerate"`.
        neutral_batch_size (`int`):
            How many neutral texts go into each step, per device.
        neutral_tokens (`int`, defaults to 32):
            How many tokens of a neutral text count, at least 2.
        max_neutral_kl (`float`, *optional*):
            Cap on that KL per token, in nats: the weight rises while it is above, and falls back below.
        step_unit (`str`, defaults to `"fisher"`):
            In which unit steps and l1 term count, measured on the base before the first step. `"fisher"`: what costs
            the same KL on neutral text (on the questions, where there is none), for every entry of slope and shift
            (see [`~peft_dso.tuner.fisher_units`]), so that one learning rate does for every model; `"output"`: slopes
            as they are, shifts by the root mean square of the norm's output (see [`~peft_dso.tuner.output_unit`]);
            `"gain"`: shifts by the norm's gain (see [`~peft_dso.tuner.shift_unit`]); `"plain"`: as they are saved.
        learning_rate (`float`, *optional*):
            The initial one; default 0.028 in the unit `"fisher"`, where a step in random directions costs its square
            in nats of KL per token, else 3e-3.
        l1_coef (`float`):
            The l1 term lambda, applied as a proximal step of size learning rate x l1_coef after each optimizer step.
            An Adam step has the size of the learning rate: at 0.3 a vector's entry stays at zero unless its gradient
            keeps a sign about a third of the time. Refused with DeepSpeed, which would undo it.
        l1_until (`float`):
            Share of the training in which the l1 step acts, in (0, 1]. Afterwards the zeros stay zero and the others
            are free of its pull (relaxed lasso, Meinshausen 2007).
        stop_bias (`float`):
            Training ends before `max_steps` where the per-occupation bias of the last ten steps, at the temperature at
            which it is largest, was below this on average. 0 never ends it early.
        max_reward_weight (`float`, defaults to 10):
            Weight of the reward, at the most. It begins at 1 and rises by `kl_rate` a step while that bias is above
            `stop_bias` and neither cap, on questions and on neutral text, binds, so that what they allow is used.
            Where one does it falls as far as the cap is exceeded, and rises as far as it is not. 1 keeps it at 1 (the
            paper), as does a training without both caps.
        training_strength (`str`, defaults to `"one"`):
            The strength in training: `"one"` (the paper) or `"uniform"`, drawn anew from [0, 1], which debiases more
            at half strength and costs accuracy (benchmarks/README.md).
    """

    rollouts: str = field(
        default="enumerate",
        metadata={"help": "How answers are explored: 'enumerate' (exact, closed answers) or 'sample' (generation)."},
    )
    questions_per_occupation: int = field(
        default=8, metadata={"help": "Questions of one occupation that stand together in a batch."}
    )
    abstain_reward: Optional[float] = field(
        default=None,
        metadata={"help": "Reward of an answer that is none of the named ones; None looks at the named ones only."},
    )
    reward_smoothing: float = field(
        default=0.3, metadata={"help": "Imbalance below which the reward shrinks in proportion; 0 is the sign."}
    )
    decoding_temperatures: list[float] = field(
        default_factory=lambda: [1.0, 0.2],
        metadata={"help": "Temperatures at which the answers are to be fair, each in (0, 1]; 1 is sampling."},
    )
    reward_memory: float = field(
        default=0.0, metadata={"help": "Share of earlier answers that counts towards an occupation's majority."}
    )
    question_share: float = field(
        default=0.35, metadata={"help": "Share of the reward taken from each question's own imbalance, in [0, 1]."}
    )
    warm_start: bool = field(
        default=False, metadata={"help": "Count the answers to all training questions before the first step."}
    )
    kl_target: str = field(
        default="fair",
        metadata={"help": "The KL is to the nearest 'fair' distribution, or to the 'base' (the paper)."},
    )
    max_kl_ratio: Optional[float] = field(
        default=1.8, metadata={"help": "Cap on KL(steered || base) in multiples of the least that fairness needs."}
    )
    max_kl: Optional[float] = field(default=None, metadata={"help": "Cap on KL(steered || base) in nats."})
    kl_rate: float = field(default=0.1, metadata={"help": "How fast the multipliers of the caps move."})
    retain_coef: float = field(
        default=0.5, metadata={"help": "Weight of the KL to the base on unambiguous and retained rows."}
    )
    retain_batch_size: int = field(default=12, metadata={"help": "Rows of that kind per step and device."})
    keep_coef: float = field(
        default=0.3,
        metadata={"help": "Weight, in the reward's units, of what right answers lose and of answering more or less."},
    )
    neutral_coef: float = field(default=1.0, metadata={"help": "Weight of the KL to the base on neutral text."})
    neutral_batch_size: int = field(default=4, metadata={"help": "Neutral texts per step and device."})
    neutral_tokens: int = field(default=32, metadata={"help": "Tokens of a neutral text that count."})
    max_neutral_kl: Optional[float] = field(
        default=0.0045, metadata={"help": "Cap on the KL per token of neutral text, in nats."}
    )
    step_unit: str = field(
        default="fisher",
        metadata={"help": "Unit of the steps and of the l1 term: 'fisher', 'output', 'gain', or 'plain'."},
    )
    l1_coef: float = field(default=0.3, metadata={"help": "The l1 term, applied as a proximal step."})
    l1_until: float = field(
        default=0.3, metadata={"help": "Share of the training in which the l1 step acts; then the zeros are kept."}
    )
    stop_bias: float = field(
        default=0.02, metadata={"help": "End early where the bias of the last ten steps was below this."}
    )
    max_reward_weight: float = field(
        default=10.0, metadata={"help": "Weight of the reward at the most; it rises while no cap binds."}
    )
    training_strength: str = field(
        default="one", metadata={"help": "Strength in training: 'one', or 'uniform' drawn from [0, 1]."}
    )

    # TRL's defaults are for full models that write long texts.
    learning_rate: Optional[float] = field(
        default=None, metadata={"help": "The initial learning rate; default 0.028 in the unit 'fisher', else 3e-3."}
    )
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "The learning rate's schedule."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Share or number of warm-up steps."})
    max_steps: int = field(default=140, metadata={"help": "Training steps, at the most."})
    per_device_train_batch_size: int = field(default=48, metadata={"help": "Questions (or answers) per step."})
    max_completion_length: Optional[int] = field(default=16, metadata={"help": "Longest sampled answer, in tokens."})
    num_generations: Optional[int] = field(default=8, metadata={"help": "Sampled answers per question."})
    gradient_checkpointing: bool = field(default=False, metadata={"help": "Trade compute for memory."})
    beta: float = field(default=0.2, metadata={"help": "The KL's multiplier at the start."})
    use_cpu: bool = field(default=False, metadata={"help": "Train on the CPU, also where there is an accelerator."})
    hub_strategy: str = field(
        default="end", metadata={"help": "When to push: only at the end, since checkpoints hold pickles."}
    )

    def __post_init__(self) -> None:
        self._check()
        if self.learning_rate is None:
            self.learning_rate = FISHER_RATE if self.step_unit == "fisher" else 3e-3
        if self.max_kl is not None and not self.beta:
            self.beta = 1e-6  # TRL leaves the reference out at exactly 0, and the cap would never bind
        if not torch.accelerator.is_available():
            self.use_cpu = True  # where there is nothing else; TRL's defaults would refuse
        if self.use_cpu and getattr(self, "bf16", None) is None:
            self.bf16 = cpu_bf16_is_fast()
        if self.rollouts == "enumerate":
            # Nothing is generated and no answer is drawn several times: what TRL asks of both must not refuse a batch.
            self.steps_per_generation, self.generation_batch_size = 2, None
            self.num_generations, self.num_generations_eval = 2, 1
        if not self.gradient_checkpointing and getattr(self, "activation_checkpointing", False) is None:
            self.activation_checkpointing = False  # its new name, without which transformers warns of the old one
        super().__post_init__()
        if self.rollouts == "enumerate":  # each step has a batch of its own
            self.steps_per_generation = 1
            self.generation_batch_size = self.per_device_train_batch_size * self.world_size

    def _check(self) -> None:
        """Refuse what is no setting, by its name."""
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name}={getattr(self, name)!r}: choose {' or '.join(map(repr, choices))}.")
        weights = ("retain_coef", "keep_coef", "neutral_coef", "l1_coef", "beta")
        for name in (*weights, "kl_rate", "stop_bias", "learning_rate"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r}: a finite number of at least 0.")
        for name, least in (("retain_batch_size", 0), ("neutral_batch_size", 0), ("neutral_tokens", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name}={getattr(self, name)!r}: at least {least}.")
        if self.abstain_reward is not None and not math.isfinite(self.abstain_reward):
            raise ValueError(f"abstain_reward={self.abstain_reward!r}: a finite number, or None for none.")
        if self.max_steps == 0 or self.max_steps < -1:
            raise ValueError(f"max_steps={self.max_steps!r}: at least 1, or -1 for as many as num_train_epochs makes.")
        for name in ("max_kl", "max_kl_ratio", "max_neutral_kl"):
            cap = getattr(self, name)
            if cap is not None and not cap > 0:
                raise ValueError(f"{name}={cap!r}: a cap above 0, or None for none.")
        if not 1 <= self.max_reward_weight < math.inf:
            raise ValueError(f"max_reward_weight={self.max_reward_weight!r}: a finite number of at least 1.")
        if not 0 <= self.question_share <= 1:
            raise ValueError(f"question_share={self.question_share!r}: a share in [0, 1].")
        if not 0 < self.l1_until <= 1:
            raise ValueError(f"l1_until={self.l1_until!r}: above 0 and at most 1.")
        if not self.decoding_temperatures or not all(0 < t <= 1 for t in self.decoding_temperatures):
            raise ValueError(
                f"decoding_temperatures={self.decoding_temperatures!r}: at least one, each above 0 and at most 1."
            )
        if self.warm_start and self.rollouts == "enumerate" and not self.reward_memory:
            raise ValueError(
                "warm_start=True needs reward_memory above 0: without memory the counts are lost at once."
            )
        if self.push_to_hub and self.hub_strategy != "end":
            raise ValueError(
                f"hub_strategy={self.hub_strategy!r} would push the pickles of a checkpoint. Use 'end', which pushes "
                "the adapter alone."
            )
        self._check_batch()

    def _check_batch(self) -> None:
        """Refuse a batch that is not made of whole occupations."""
        if self.questions_per_occupation < 1:
            raise ValueError(f"questions_per_occupation={self.questions_per_occupation}: at least 1.")
        if self.rollouts != "enumerate":
            return
        if self.per_device_train_batch_size % self.questions_per_occupation:
            raise ValueError(
                f"per_device_train_batch_size={self.per_device_train_batch_size} is not a multiple of "
                f"questions_per_occupation={self.questions_per_occupation}: a batch is made of whole occupations."
            )
        if self.num_iterations != 1:
            raise ValueError(f"num_iterations={self.num_iterations}: the exact expectation is taken once per step.")


def cpu_bf16_is_fast() -> bool:
    """Whether this machine's processor multiplies in bfloat16 natively: training then takes half the time."""
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private, and no public twin in torch 2.13
    return bool(supported and supported())
