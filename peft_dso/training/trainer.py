"""The DSO trainer: TRL's RLOO with the fairness reward, a cap on the KL to the base, and an l1 proximal step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Optional

import torch
from accelerate.utils import DistributedType, gather_object
from datasets import Dataset
from peft import PeftConfig
from torch import nn
from torch.utils.data import Sampler
from transformers.utils import logging

from ..objective import (
    EnumeratedReward,
    FairnessReward,
    updated_multiplier,
)
from ..questions import check_questions, trainable_groups
from ..questions import neutral_texts as package_texts
from ..tuner import DSOConfig, set_steering_strength, steering_strength
from .adapter import PairSteps, adapter_layers, check_adapter, check_vllm, has_adapters
from .callback import STATE_KEY, DSOCallback
from .checkpoints import is_complete, last_complete_checkpoint
from .config import DSOTrainerConfig
from .data import QuestionRows, as_rows
from .logs import LoggingTrainer
from .sampler import OccupationSampler
from .scorer import Scorer


logger = logging.get_logger(__name__)


class DSOTrainer(LoggingTrainer):
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
        rows = as_rows(train_dataset, "train_dataset")
        check_questions(rows)
        open_rows = [row for row in rows if row.get("right") is None]
        if not open_rows:
            raise ValueError("train_dataset has no ambiguous question (right=None): there is nothing to make fair.")
        self.groups = trainable_groups(open_rows)
        evaluated = _eval_rows(eval_dataset, self.groups)
        self.retain_rows = [row for row in rows if row.get("right") is not None] if args.retain_coef else []
        if retain_dataset is not None and args.retain_coef:
            self.retain_rows += as_rows(retain_dataset, "retain_dataset", required=("prompt",))
        peft_config = _adapter_config(model, peft_config)
        trained = check_adapter(model) if has_adapters(model) else {}
        if args.use_vllm:
            check_vllm(model, peft_config)
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
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            # TRL wants a table of `datasets`, which cannot hold all shapes of rows: the rows follow below.
            train_dataset=Dataset.from_dict({"row": range(len(open_rows))}),
            eval_dataset=None if not evaluated else Dataset.from_dict({"row": [0]}),
            peft_config=peft_config,
            **kwargs,
        )
        self.train_dataset: Any = QuestionRows(open_rows)
        self.eval_dataset: Any = evaluated
        if args.l1_coef > 0 and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                f"l1_coef={args.l1_coef!r} has no effect with DeepSpeed, whose optimizer writes its own copy of the "
                "vectors over the zeros. Set l1_coef=0 and prune(keep=...) the trained adapter, or launch without it."
            )
        self._restore_adapter(trained)
        self.scorer = Scorer(
            self.processing_class, self.accelerator, bool(args.bf16 or args.fp16), args.chat_template_kwargs
        )
        self.scorer.check(self._dso_model, [*open_rows, *self.retain_rows, *_all_rows(evaluated)])
        self.neutral = self._neutral(neutral_texts)
        self.neutral_weight = args.neutral_coef
        self.pairs = PairSteps(adapter_layers(self._dso_model), args.l1_coef, args.l1_until, args.shift_unit)
        self._micro_step = 0  # batches since the last optimizer step; TRL's own count starts anew after a resume
        self._evaluated: list[tuple[str, list[float]]] = []
        self.add_callback(DSOCallback(self))

    def _restore_adapter(self, trained: Mapping[str, torch.Tensor]) -> None:
        """Undo what TRL does to a PeftModel: a reference that is not the base, and pairs in bfloat16."""
        unwrapped: Any = self._dso_model
        if "ref" in unwrapped.peft_config:
            # TRL's copy of the loaded adapter. The reference of DSO is the base model: without "ref", TRL disables the
            # adapter instead.
            unwrapped.delete_adapter("ref")
        for name, parameter in unwrapped.named_parameters():
            if ".dso_affine." in name and parameter.dtype != torch.float32:
                # TRL casts what is trained on a quantised base to bfloat16, where a slope does not move.
                parameter.data = trained.get(name, parameter.data).to(parameter.device, torch.float32)

    def _neutral(self, texts: Optional[Sequence[str]]) -> list[tuple[int, ...]]:
        """The tokens of the neutral texts, none where they do not count."""
        if not self.args.neutral_coef or self.args.rollouts != "enumerate":
            return []
        tokenizer: Any = getattr(self.processing_class, "tokenizer", self.processing_class)
        most = self.args.neutral_tokens
        found = [tuple(tokenizer(text)["input_ids"][:most]) for text in texts or package_texts("train")]
        return [tokens for tokens in found if len(tokens) > 1]

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

    def probe_rows(self) -> list[dict[str, Any]]:
        """Rows such as those to come, the same on every process."""
        return [*self.train_dataset.rows[:48], *self.retain_rows[:16]]

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
                kl, _ = self._kl(self.scorer.score(model, encoded), encoded, "retain_kl", mode)
                loss = loss + self.args.retain_coef * kl.mean()
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
        majorities of training.
        """
        rewards = self.counting_rewards()
        counts = [reward.counts for reward in rewards]
        self._evaluated = []
        for reward in rewards:
            reward.counts = {}
        uniform = self.is_in_train and self.args.training_strength == "uniform"
        try:
            with steering_strength(self._dso_model, 1.0, "default") if uniform else nullcontext():
                return super().evaluate(*args, **kwargs)
        finally:
            for reward, before in zip(rewards, counts, strict=True):
                reward.counts = before

    def counting_rewards(self) -> list[FairnessReward]:
        """All rewards whose counts matter: the one that pays sampled answers, or one per temperature."""
        if self.args.rollouts == "enumerate":
            return self.enumerated.counts
        return [] if self.fairness_reward is None else [self.fairness_reward]

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        mode = "train" if self.model.training else "eval"
        if "kl" in self._metrics[mode]:
            # TRL's is a log-ratio of sampled tokens, which can be negative: not the exact KL that enumeration logs.
            self._metrics[mode]["sampled_kl"] += self._metrics[mode].pop("kl")
        self._log_bias(mode)
        return output

    def create_optimizer(self, *args: Any, **kwargs: Any) -> torch.optim.Optimizer:
        """As TRL's; the steps of the shifts are scaled (`shift_unit`)."""
        first = self.optimizer is None
        optimizer: torch.optim.Optimizer = super().create_optimizer(*args, **kwargs)
        if first:
            self.pairs.scale_steps_of(optimizer)
        return optimizer

    def before_optimizer_step(self) -> None:
        """Called by the trainer's callback."""
        self.pairs.before_step(self.state.global_step / max(self.state.max_steps, 1))

    def after_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The l1 term's proximal step, and one step of the multipliers. Called by the trainer's callback."""
        self.pairs.after_step(float(optimizer.param_groups[0]["lr"]))
        metrics, args = self._metrics["train"], self.args
        steps = args.gradient_accumulation_steps if args.rollouts == "enumerate" else 1

        def recent(name: str) -> float:
            values = metrics.get(name, [])[-steps:]
            return sum(values) / len(values) if values else float("nan")

        kl = recent("kl" if args.rollouts == "enumerate" else "sampled_kl")
        # The cap that binds: in nats, or in multiples of the least KL that fairness needs on this batch.
        caps = [args.max_kl, None if args.max_kl_ratio is None else args.max_kl_ratio * recent("least_kl")]
        cap = min((c for c in caps if c is not None and c > 0), default=None)
        if cap is not None and kl == kl:
            # TRL skips the reference at exactly 0 and could then never see the KL rise again.
            self.beta = max(1e-6, args.beta, updated_multiplier(self.beta, kl, cap, args.kl_rate))
        neutral = recent("neutral_kl")
        if args.max_neutral_kl is not None and neutral == neutral:
            weight = updated_multiplier(self.neutral_weight, neutral, args.max_neutral_kl, args.kl_rate)
            self.neutral_weight = max(args.neutral_coef, weight)
        zeros, l1 = self.pairs.sparsity()
        for name, value in (("zero_neurons", zeros), ("l1", l1), ("beta", self.beta)):
            metrics[name].append(value)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """
        As TRL's, but `resume_from_checkpoint=True` passes over a checkpoint that was not written to its end, and such
        a checkpoint named explicitly is refused.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_complete_checkpoint(self.args.output_dir)
        elif isinstance(resume_from_checkpoint, str) and not is_complete(resume_from_checkpoint):
            raise ValueError(
                f"{resume_from_checkpoint} is not a complete checkpoint: trainer_state.json, which is written last, "
                "is missing or broken. Resume from an earlier one."
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.state.stateful_callbacks[STATE_KEY] = {
            "beta": self.beta,
            "neutral_weight": self.neutral_weight,
            "fairness_rewards": [reward.state_dict() for reward in self.counting_rewards()],
        }
        super()._save_checkpoint(model, trial)


def _adapter_config(model: Any, peft_config: Optional[PeftConfig]) -> Optional[PeftConfig]:
    """The configuration of a new adapter; a model that has one needs none."""
    if has_adapters(model):
        return peft_config
    if peft_config is not None and not isinstance(peft_config, DSOConfig):
        raise ValueError(f"peft_config must be a DSOConfig, got {type(peft_config).__name__}.")
    return DSOConfig(task_type="CAUSAL_LM") if peft_config is None else peft_config


def _eval_rows(dataset: Any, groups: tuple[str, ...]) -> Any:
    """The questions to evaluate on, or several sets of them by name, checked before anything is trained."""
    if dataset is None:
        return None
    if isinstance(dataset, Mapping):
        return {name: _eval_rows(rows, groups) for name, rows in dataset.items()}
    rows = as_rows(dataset, "eval_dataset")
    try:
        check_questions(rows, groups)
    except ValueError as error:
        raise ValueError(f"eval_dataset: {error}") from None
    return QuestionRows(rows)


def _all_rows(evaluated: Any) -> list[dict[str, Any]]:
    if isinstance(evaluated, dict):
        return [row for rows in evaluated.values() for row in rows]
    return list(evaluated or ())
