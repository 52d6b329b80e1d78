"""The DSO trainer: TRL's RLOO with the fairness reward, a cap on the KL to the base, and an l1 proximal step."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, Optional

import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft import PeftConfig
from torch import nn
from torch.utils.data import Sampler
from transformers.utils import logging

from ..objective import EnumeratedReward, FairnessReward
from ..questions import check_questions, trainable_groups
from ..tuner import get_steering_strength, set_steering_strength, steering_strength
from .adapter import (
    PairSteps,
    adapter_config,
    adapter_layers,
    check_adapter,
    check_l1,
    check_vllm,
    has_adapters,
    restore_adapter,
)
from .callback import STATE_KEY, DSOCallback
from .checkpoints import checkpoint_to_resume
from .config import DSOTrainerConfig
from .data import (
    QuestionRows,
    all_rows,
    as_rows,
    check_reward,
    eval_rows,
    neutral_tokens,
    retained_rows,
    warn_of_halves,
)
from .sampler import OccupationSampler
from .scorer import Scorer
from .steps import SteppingTrainer


logger = logging.get_logger(__name__)


class DSOTrainer(SteppingTrainer):
    """
    Trains a DSO adapter (arXiv 2512.15926, section 4) on questions with the columns of `peft_dso.questions`.

    Example:

    ```python
    from peft_dso import DSOConfig, DSOTrainer, DSOTrainerConfig
    from peft_dso.questions import pronoun_questions

    trainer = DSOTrainer(
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        args=DSOTrainerConfig("out", max_steps=50),
        train_dataset=pronoun_questions("train") + pronoun_questions("train", ambiguous=False),
        peft_config=DSOConfig(task_type="CAUSAL_LM"),
    )
    trainer.train()
    ```

    Args:
        model (`str`, `PreTrainedModel` or `PeftModel`):
            As in `RLOOTrainer`. A `PeftModel` must hold a trainable DSO adapter called `"default"`; the KL is still
            taken to the base model, never to the adapter that was loaded.
        args ([`DSOTrainerConfig`]):
            The configuration.
        train_dataset (`Dataset` or `list[dict]`):
            Questions. Ambiguous rows earn the fairness reward; rows with a right answer only count for the KL.
        eval_dataset (`Dataset` or `list[dict]`, *optional*):
            Questions to evaluate on: ambiguous ones for the bias, others for the accuracy.
        retain_dataset (`Dataset` or `list[dict]`, *optional*):
            Rows with a `prompt` whose continuation must not change.
        neutral_texts (`list[str]`, *optional*):
            Texts at every token of which the model is held to the base; default those of the package
            ([`~peft_dso.questions.neutral_texts`]).
        reward_funcs (*optional*):
            Reward functions of TRL, with `rollouts="sample"`; default a [`FairnessReward`] with the settings of
            `args`.
        peft_config ([`DSOConfig`], *optional*):
            The adapter; default `DSOConfig(task_type="CAUSAL_LM")` for a model without one.
        **kwargs:
            The other arguments of `RLOOTrainer`.

    Raises:
        TypeError: the data is no list of rows, or the neutral texts are one text.
        ValueError: the data is wrong, the adapter is not a trainable DSO adapter, or a setting does not fit.
    """

    _tag_names = ["trl", "dso"]
    _name = "DSO"
    _paper = {
        "title": "DSO: Direct Steering Optimization for Bias Mitigation",
        "id": "2512.15926",
        "citation": "@inproceedings{dso2026, title = {{DSO: Direct Steering Optimization for Bias Mitigation}}, "
        "booktitle = {CVPR}, year = 2026}",
    }

    def __init__(
        self,
        model: Any,
        args: Optional[DSOTrainerConfig] = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        retain_dataset: Any = None,
        neutral_texts: Optional[Sequence[str]] = None,
        reward_funcs: Any = None,
        peft_config: Optional[PeftConfig] = None,
        **kwargs: Any,
    ) -> None:
        args = DSOTrainerConfig("dso-output") if args is None else args
        open_rows = self._take_rows(train_dataset, retain_dataset, args)
        evaluated = eval_rows(eval_dataset, self.groups)
        peft_config = adapter_config(model, peft_config)
        trained = check_adapter(model) if has_adapters(model) else {}
        if args.use_vllm:
            check_vllm(model, peft_config)
        super().__init__(
            model=model,
            reward_funcs=self._take_rewards(reward_funcs, args),
            args=args,
            # TRL wants a table of `datasets`, which cannot hold all shapes of rows: the rows follow below.
            train_dataset=Dataset.from_dict({"row": range(len(open_rows))}),
            eval_dataset=None if not evaluated else Dataset.from_dict({"row": [0]}),
            peft_config=peft_config,
            **kwargs,
        )
        self.train_dataset: Any = QuestionRows(open_rows)
        self.eval_dataset: Any = evaluated
        check_l1(args.l1_coef, self.accelerator.distributed_type)
        restore_adapter(self._dso_model, trained)
        self.scorer = Scorer(
            self.processing_class, self.accelerator, bool(args.bf16 or args.fp16), args.chat_template_kwargs
        )
        self.scorer.check(self._dso_model, [*open_rows, *self.retain_rows, *all_rows(evaluated)])
        counted = args.neutral_coef > 0 and args.rollouts == "enumerate"
        self.neutral = neutral_tokens(self.processing_class, neutral_texts, args.neutral_tokens) if counted else []
        self.neutral_weight = args.neutral_coef
        self.reward_weight = 1.0
        self.usual_least = 0.0
        self.pairs = PairSteps(adapter_layers(self._dso_model), args.l1_coef, args.l1_until)
        self._micro_step = 0  # batches since the last optimizer step; TRL's own count starts anew after a resume
        self._noted = []
        self._spent = {}
        self._evaluated = []
        self._callback = DSOCallback(self)
        self.add_callback(self._callback)

    def _take_rows(self, train_dataset: Any, retain_dataset: Any, args: DSOTrainerConfig) -> list[dict[str, Any]]:
        """The rows to make fair; those to hold to the base, and the groups, are noted."""
        rows = as_rows(train_dataset, "train_dataset")
        check_questions(rows)
        open_rows = [row for row in rows if row.get("right") is None]
        if not open_rows:
            raise ValueError("train_dataset has no ambiguous question (right=None): there is nothing to make fair.")
        self.groups = trainable_groups(open_rows)
        if args.rollouts == "enumerate":
            warn_of_halves(open_rows, args.questions_per_occupation)
        self.retain_rows = []
        if args.retain_coef or (args.keep_coef and args.rollouts == "enumerate"):
            self.retain_rows = [row for row in rows if row.get("right") is not None]
            self.retain_rows += [] if retain_dataset is None else retained_rows(retain_dataset)
        return open_rows

    def _take_rewards(self, reward_funcs: Any, args: DSOTrainerConfig) -> Any:
        """The reward functions for TRL: those given, or the fairness reward."""
        if reward_funcs is not None and args.rollouts == "enumerate":
            raise ValueError("reward_funcs needs rollouts='sample': the enumerated answers earn the fairness reward.")
        self.enumerated = EnumeratedReward(
            self.groups,
            args.decoding_temperatures,
            args.abstain_reward,
            args.reward_smoothing,
            args.reward_memory,
            args.question_share,
        )
        if reward_funcs is None:
            reward_funcs = self.enumerated.counts[0]
        given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        # None if other rewards were given; Any because enumeration always has it.
        self.fairness_reward: Any = next((f for f in given if isinstance(f, FairnessReward)), None)
        check_reward(self.fairness_reward, self.groups, args.warm_start)
        return reward_funcs

    # --- data --------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Any = None) -> Sampler[int]:
        dataset = self.train_dataset if dataset is None else dataset
        enumerated = self.args.rollouts == "enumerate"
        repeats = 1 if enumerated else self.num_generations
        return OccupationSampler(
            dataset["occupation"],
            self.args.questions_per_occupation,
            int(self.args.generation_batch_size or 0) // repeats,
            pairs=dataset["pair"] if "pair" in dataset.column_names else None,
            mini_repeat_count=repeats,
            repeat_count=1 if enumerated else self.num_iterations * self.args.steps_per_generation,
            shuffle=self.shuffle_dataset,
            seed=self.args.seed,
        )

    def _get_eval_sampler(self, eval_dataset: Any) -> Sampler[int]:
        if self.args.rollouts == "enumerate":
            return torch.utils.data.SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    # --- the objective -----------------------------------------------------------------------------------------------

    def _prepare_inputs(self, generation_batch: Any) -> Any:
        if self.args.training_strength == "uniform" and self.model.training and self._draws_strength():
            generator = self._generator("strength", self._micro_step)
            set_steering_strength(self._dso_model, torch.rand((), generator=generator))
        inputs = generation_batch if self.args.rollouts == "enumerate" else super()._prepare_inputs(generation_batch)
        return {"questions": inputs} if self.args.rollouts == "enumerate" else inputs

    def _draws_strength(self) -> bool:
        """Whether this step begins a batch: sampled answers are scored at the strength that they were sampled at."""
        return self._step % (self.args.steps_per_generation * self.num_iterations) == 0

    def _compute_loss(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        mode = "train" if self.model.training else "eval"
        if self.scorer.packs is None:
            self.scorer.decide(self.model, self.probe_rows())
        retained = self._draw("retain", self.retain_rows, self.args.retain_batch_size) if mode == "train" else []
        if self.args.rollouts == "enumerate":
            loss = self._enumerated_loss(model, inputs["questions"], retained, mode)
        else:
            loss = super()._compute_loss(model, inputs)
            if retained:
                encoded = [self.scorer.encode(row) for row in retained]
                scores, base = self.scorer.score(model, encoded), self.scorer.base(self.model, encoded)
                kl = self._kl(scores, base, "retain_kl")
                loss = loss + self.args.retain_coef * kl.mean()
        self._log_noted(mode)
        self._micro_step += mode == "train"
        # All processes stop together: one that raises alone leaves the others waiting for it.
        if not all(gather_object([bool(torch.isfinite(loss))])):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step}, here or on another process. Lower "
                f"learning_rate (now {self.args.learning_rate:g}), or train with bf16=False."
            )
        return loss

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """
        As TRL's, within a training at strength 1. The answers of an evaluation count for its own bias, not towards the
        majorities of training, and in its loss reward and KL weigh what they do at the start, so that one evaluation
        can be compared with the next.
        """
        rewards = self.counting_rewards()
        before = [(reward.counts, reward.due, reward.latest) for reward in rewards]
        weights = self.beta, self.reward_weight
        self._evaluated = []
        self.beta, self.reward_weight = self.args.beta, 1.0
        for reward in rewards:
            reward.reset()
        uniform = self.is_in_train and self.args.training_strength == "uniform"
        try:
            with steering_strength(self._dso_model, 1.0, "default") if uniform else nullcontext():
                return super().evaluate(*args, **kwargs)
        finally:
            self.beta, self.reward_weight = weights
            for reward, kept in zip(rewards, before, strict=True):
                reward.counts, reward.due, reward.latest = kept

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        if "kl" in self._metrics[mode]:
            # TRL's is a log-ratio of sampled tokens, which can be negative: not the exact KL that enumeration logs.
            sampled = self._metrics[mode].pop("kl")
            self._metrics[mode]["sampled_kl"] += sampled
            if mode == "train":
                self._spent.setdefault("sampled_kl", []).extend(sampled)
        self._log_bias(mode)
        return output

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """
        As TRL's, but `resume_from_checkpoint=True` passes over a checkpoint that was not written to its end, and such
        a checkpoint named explicitly is refused.
        """
        resume_from_checkpoint = checkpoint_to_resume(resume_from_checkpoint, self.args.output_dir)
        strength = get_steering_strength(self._dso_model, "default")
        try:
            done = super().train(resume_from_checkpoint, *args, **kwargs)
            if self.accelerator.is_main_process:
                logger.info(self.why_it_ended())
            return done
        finally:  # also where it was interrupted
            set_steering_strength(self._dso_model, strength, "default")

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.state.stateful_callbacks[STATE_KEY] = {
            "beta": self.beta,
            "neutral_weight": self.neutral_weight,
            "reward_weight": self.reward_weight,
            "usual_least": self.usual_least,
            "biases": list(self._callback.biases),
            "fairness_rewards": [reward.state_dict() for reward in self.counting_rewards()],
        }
        super()._save_checkpoint(model, trial)
