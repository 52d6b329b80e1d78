"""The DSO trainer: TRL's RLOO with the fairness reward, a cap on the KL to the base, and an l1 proximal step."""

from __future__ import annotations

import dataclasses
import json
import os
import random
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Optional

import torch
from accelerate.utils import DistributedType, gather_object, is_peft_model
from datasets import Dataset
from huggingface_hub import ModelCard
from pandas import DataFrame
from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import logging
from trl import RLOOTrainer

from ..export import push_folder, save_card
from ..objective.penalties import kl_divergence, soft_threshold_, sparsity, updated_multiplier
from ..objective.rewards import FairnessReward, group_rewards, imbalance, occupation_shares, occupation_weights
from ..questions import check_questions, trainable_groups
from ..scoring import (
    EncodedQuestion,
    Scores,
    check_reads_pictures,
    encode_row,
    evaluating,
    reads_tries,
    row_images,
    score,
    score_batch,
)
from ..tuner import DSOConfig, DSOLayer, get_steering_strength, is_norm, set_steering_strength
from .config import DSOTrainerConfig
from .sampler import OccupationSampler


logger = logging.get_logger(__name__)

STATE_KEY = "DSOTrainer"  # in trainer_state.json


class DSOTrainer(RLOOTrainer):
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
            Ambiguous questions to evaluate on.
        retain_dataset (`Dataset` or `list[dict]`, *optional*):
            Rows with a `prompt` whose continuation must not change.
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

    args: DSOTrainerConfig
    beta: float  # the KL's multiplier, TRL's; changed by the cap

    def __init__(
        self,
        model: Any,
        args: Optional[DSOTrainerConfig] = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        retain_dataset: Any = None,
        reward_funcs: Any = None,
        peft_config: Optional[PeftConfig] = None,
        **kwargs: Any,
    ) -> None:
        args = DSOTrainerConfig("dso-output") if args is None else args
        rows = _as_rows(train_dataset, "train_dataset")
        check_questions(rows)
        open_rows = [row for row in rows if row.get("right") is None]
        self.retain_rows = [row for row in rows if row.get("right") is not None] if args.retain_coef else []
        if retain_dataset is not None and args.retain_coef:
            self.retain_rows += _as_rows(retain_dataset, "retain_dataset", required=("prompt",))
        if not open_rows:
            raise ValueError("train_dataset has no ambiguous question (right=None): there is nothing to make fair.")
        self.groups = trainable_groups(open_rows)
        if is_peft_model(model):
            trained = _check_adapter(model)
        else:
            trained = {}
            if peft_config is None:
                peft_config = DSOConfig(task_type="CAUSAL_LM")
            if not isinstance(peft_config, DSOConfig):
                raise ValueError(f"peft_config must be a DSOConfig, got {type(peft_config).__name__}.")
        if args.use_vllm:
            _check_vllm(model, peft_config)

        if reward_funcs is not None and args.rollouts == "enumerate":
            raise ValueError("reward_funcs needs rollouts='sample': the enumerated answers earn the fairness reward.")
        # One for each temperature, which has majorities of its own. Without weights: the sampler shows each occupation
        # as often as any other.
        self.temperature_rewards = [
            FairnessReward(self.groups, args.abstain_reward, args.reward_smoothing, args.reward_memory)
            for _ in args.decoding_temperatures
        ]
        if reward_funcs is None:
            reward_funcs = self.temperature_rewards[0]
        given = reward_funcs if isinstance(reward_funcs, list) else [reward_funcs]
        # None if other rewards were given; Any because enumeration always has it.
        self.fairness_reward: Any = next((f for f in given if isinstance(f, FairnessReward)), None)
        super().__init__(
            model=model,
            reward_funcs=reward_funcs,
            args=args,
            train_dataset=Dataset.from_list(open_rows),
            eval_dataset=None if eval_dataset is None else Dataset.from_list(_as_rows(eval_dataset, "eval_dataset")),
            peft_config=peft_config,
            **kwargs,
        )
        if args.l1_coef > 0 and self.accelerator.distributed_type == DistributedType.DEEPSPEED:
            raise ValueError(
                f"l1_coef={args.l1_coef!r} has no effect with DeepSpeed, whose optimizer writes its own copy of the "
                "vectors over the zeros. Set l1_coef=0 and prune(keep=...) the trained adapter, or launch without it."
            )
        unwrapped = self.accelerator.unwrap_model(self.model)
        if "ref" in unwrapped.peft_config:
            # TRL's copy of the loaded adapter. The reference of DSO is the base model: without "ref", TRL disables the
            # adapter instead.
            unwrapped.delete_adapter("ref")
        for name, parameter in unwrapped.named_parameters():
            if ".dso_affine." in name and parameter.dtype != torch.float32:
                # TRL casts what is trained on a quantised base to bfloat16, where a slope does not move.
                parameter.data = trained.get(name, parameter.data).to(parameter.device, torch.float32)
        pictured = next((row for row in (*open_rows, *self.retain_rows) if row_images(row)), None)
        if pictured is not None:
            check_reads_pictures(unwrapped)
            self._encode(pictured)  # raises what the processor cannot do, before the first step
        self._packs: Optional[bool] = None
        self._micro_step = 0  # batches since the last optimizer step; TRL's own count starts anew after a resume
        self._evaluated: list[tuple[str, list[float]]] = []
        self._support: Optional[list[tuple[nn.Parameter, torch.Tensor]]] = None
        self.add_callback(_DSOCallback(self))

    # --- data --------------------------------------------------------------------------------------------------------

    def _get_train_sampler(self, dataset: Optional[Dataset] = None) -> Sampler[int]:
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

    def _get_eval_sampler(self, eval_dataset: Dataset) -> Sampler[int]:
        if self.args.rollouts == "enumerate":
            return torch.utils.data.SequentialSampler(eval_dataset)
        return super()._get_eval_sampler(eval_dataset)

    def _encode(self, row: Mapping[str, Any]) -> EncodedQuestion:
        return encode_row(self.processing_class, row)

    def _generator(self, purpose: str, micro_step: int) -> torch.Generator:
        """Random numbers that depend on the seed and the step alone: the same on all ranks and after a resume."""
        seed = random.Random(f"{purpose} {self.args.seed} {self.state.global_step} {micro_step}").getrandbits(63)
        return torch.Generator().manual_seed(seed)

    def _draw_retained(self) -> list[dict[str, Any]]:
        """This process's share of the retained rows of this step; the same rows after a resume."""
        if not self.retain_rows:
            return []
        generator = self._generator("retain", self._micro_step)
        size, rank = self.args.retain_batch_size, self.accelerator.process_index
        chosen = torch.randint(len(self.retain_rows), (size * self.accelerator.num_processes,), generator=generator)
        return [self.retain_rows[i] for i in chosen[rank * size : (rank + 1) * size].tolist()]

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

    @property
    def _dso_model(self) -> nn.Module:
        return self.accelerator.unwrap_model(self.model)

    def _compute_loss(self, model: nn.Module, inputs: Any) -> torch.Tensor:
        mode = "train" if self.model.training else "eval"
        retained = self._draw_retained() if mode == "train" else []
        self._micro_step += mode == "train"
        if self.args.rollouts == "enumerate":
            loss = self._enumerated_loss(model, inputs["questions"], retained, mode)
        else:
            loss = super()._compute_loss(model, inputs)
            if retained:
                encoded = [self._encode(row) for row in retained]
                loss = loss + self.args.retain_coef * self._kl(self._score(model, encoded), encoded, "retain_kl", mode)
        if not torch.isfinite(loss):
            raise FloatingPointError(
                f"The loss is {loss.item()} at step {self.state.global_step}. Lower learning_rate (now "
                f"{self.args.learning_rate:g}), or train with bf16=False."
            )
        return loss

    def _enumerated_loss(
        self, model: nn.Module, rows: list[dict[str, Any]], retained: list[dict[str, Any]], mode: str
    ) -> torch.Tensor:
        """
        -E[r] + beta KL + retain_coef KL_retained, where the expectation over the named answers is exact: its gradient
        with the rewards held fixed is what the policy gradient estimates from samples.
        """
        encoded = [self._encode(row) for row in (*rows, *retained)]
        scores = self._score(model, encoded)
        n, closed = len(rows), self.args.abstain_reward is None
        log_p = scores.answers[:n, : max(len(row["answers"]) for row in rows)]
        named = 1.0 if closed else log_p.exp().sum(-1, keepdim=True)  # how likely any of the named answers is

        names = [row["occupation"] for row in rows]
        expected = log_p.new_zeros(n)
        for temperature, counted in zip(self.args.decoding_temperatures, self.temperature_rewards):
            p = named * (log_p / temperature).softmax(-1)  # (questions, answers)
            group = self._observe(rows, p.detach(), counted)
            shares = torch.tensor([counted.shares(name) for name in names], device=p.device)
            reward = group_rewards(shares, self.args.reward_smoothing).gather(1, group)  # (questions, answers)
            if self.args.question_share:
                own = p.new_zeros(n, len(self.groups)).scatter_add(1, group, p.detach())
                own = group_rewards(own / own.sum(-1, keepdim=True), self.args.reward_smoothing).gather(1, group)
                reward = torch.lerp(reward, own, self.args.question_share)
            expected = expected + (p * reward).sum(-1) / len(self.temperature_rewards)
        if self.args.abstain_reward is not None:
            expected = expected + self.args.abstain_reward * (1 - log_p.exp().sum(-1))
        counts = occupation_weights(gather_object(names))
        weight = torch.tensor([counts[name] for name in names], device=log_p.device)
        loss = -(weight * expected).mean()

        seen = Scores(scores.answers[:n], scores.decision[:n])
        loss = loss + self.beta * self._kl(seen, encoded[:n], "kl", mode)
        if retained:
            seen = Scores(scores.answers[n:], scores.decision[n:])
            loss = loss + self.args.retain_coef * self._kl(seen, encoded[n:], "retain_kl", mode)

        metrics = self._metrics[mode]
        metrics["reward"].append(self.accelerator.gather(expected.detach()).mean().item())
        metrics["abstention"].append(
            self.accelerator.gather(1 - scores.answers[:n].detach().exp().sum(-1)).mean().item()
        )
        self._log_bias(mode)
        return loss

    def _observe(self, rows: Sequence[Mapping[str, Any]], p: torch.Tensor, counted: FairnessReward) -> torch.Tensor:
        """
        Count answers given with probabilities `p`, shape `(questions, answers)`, towards the majorities of `counted`;
        returns the index of each answer's group, of the same shape.
        """
        group = torch.zeros(*p.shape, dtype=torch.long)
        for i, row in enumerate(rows):
            for j, meaning in enumerate(row["meanings"]):
                group[i, j] = self.groups.index(meaning)
        group = group.to(p.device)
        by_group = p.new_zeros(len(rows), len(self.groups)).scatter_add(1, group, p)  # (questions, k)
        counted.observe([(row["occupation"], values) for row, values in zip(rows, by_group.tolist())])
        return group

    def observe_first_pass(self) -> None:
        """Count what the model says to all training questions (`warm_start`); each process scores a share of them."""
        rows = [*self.train_dataset][self.accelerator.process_index :: self.accelerator.num_processes]
        widest = max(len(row["answers"]) for row in rows)
        log_p = torch.full((len(rows), widest), -torch.inf)
        for numbers, scores in score(self.model, [self._encode(row) for row in rows]):
            log_p[numbers, : scores.answers.shape[1]] = scores.answers.float().cpu()
        for temperature, counted in zip(self.args.decoding_temperatures, self.temperature_rewards):
            p = log_p.exp().sum(-1, keepdim=True) * (log_p / temperature).softmax(-1)
            self._observe(rows, p, counted)

    def _log_bias(self, mode: str) -> None:
        """Per-occupation bias and gap of the answers observed last; in an evaluation, of all of its answers so far."""
        if self.fairness_reward is None:
            return
        if mode == "eval":
            self._evaluated += self.fairness_reward.latest
        said = self._evaluated if mode == "eval" else self.fairness_reward.latest
        names = sorted({name for name, _ in said})
        if not names:
            return
        index = torch.tensor([names.index(name) for name, _ in said])
        shares = occupation_shares(torch.tensor([values for _, values in said]), index, len(names))
        found = {"per_occupation_bias": imbalance(shares).mean().item()}
        if set(self.groups) == {"pro", "anti"}:
            found["stereotype_gap"] = (shares[:, self.groups.index("pro")] * 2 - 1).mean().item()
        for key, value in found.items():
            self._metrics[mode][key] = [value] if mode == "eval" else [*self._metrics[mode][key], value]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As TRL's. The answers of an evaluation count for its own bias, not towards the majorities of training."""
        rewards = self._counting_rewards()
        counts = [reward.counts for reward in rewards]
        self._evaluated = []
        for reward in rewards:
            reward.counts = {}
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            for reward, before in zip(rewards, counts):
                reward.counts = before

    def _counting_rewards(self) -> list[FairnessReward]:
        """All rewards whose counts matter: the one that pays sampled answers, or one per temperature."""
        if self.args.rollouts == "enumerate":
            return self.temperature_rewards
        return [] if self.fairness_reward is None else [self.fairness_reward]

    def _score(self, model: nn.Module, encoded: list[EncodedQuestion]) -> Scores:
        if self._packs is None:
            # Under autocast the weights alone do not tell the precision.
            self._packs = reads_tries(model, encoded, 0.1 if self.args.bf16 or self.args.fp16 else None)
        return score_batch(model, encoded, self._packs)

    def _kl(self, scores: Scores, encoded: list[EncodedQuestion], name: str, mode: str) -> torch.Tensor:
        """Mean KL(steered || base) of the next-token distribution where each answer is decided."""
        base = self._reference_decisions(encoded).to(scores.decision.device)
        kl = kl_divergence(scores.decision, base)
        self._metrics[mode][name].append(self.accelerator.gather(kl.detach()).mean().item())
        return kl.mean()

    @torch.no_grad()
    def _reference_decisions(self, encoded: Sequence[EncodedQuestion]) -> torch.Tensor:
        """Log-probabilities of the base model (the adapter off) after each prompt, shape `(questions, vocabulary)`."""
        prompts = [dataclasses.replace(question, answers=()) for question in encoded]
        with evaluating(self._dso_model), self._dso_model.disable_adapter():  # type: ignore[operator]
            return self._score(self.model, prompts).decision

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        output: dict[str, Any] = super()._generate_and_score_completions(inputs)
        self._log_bias("train" if self.model.training else "eval")
        return output

    def _affines(self) -> list[nn.Module]:
        return [
            layer.dso_affine["default"]
            for layer in self._dso_model.modules()
            if isinstance(layer, DSOLayer) and "default" in layer.dso_affine
        ]

    def before_optimizer_step(self) -> None:
        """Note what the l1 steps have left, once they are over. Called by the trainer's callback."""
        over = self.args.l1_coef and self.state.global_step >= self.args.l1_until * self.state.max_steps
        self._support = [(p, p != 0) for affine in self._affines() for p in affine.parameters()] if over else None

    def after_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """The l1 term's proximal step, and one step of the KL's multiplier. Called by the trainer's callback."""
        affines = self._affines()
        if self._support is not None:
            with torch.no_grad():
                for parameter, kept in self._support:
                    parameter.mul_(kept)
        elif self.args.l1_coef:
            rate = optimizer.param_groups[0]["lr"]
            for affine in affines:
                soft_threshold_(affine.parameters(), float(rate) * self.args.l1_coef)
        metrics = self._metrics["train"]
        if self.args.max_kl is not None and metrics["kl"]:
            steps = self.args.gradient_accumulation_steps if self.args.rollouts == "enumerate" else 1
            recent = metrics["kl"][-steps:]
            # TRL skips the reference at exactly 0 and could then never see the KL rise again.
            self.beta = max(
                1e-6, updated_multiplier(self.beta, sum(recent) / len(recent), self.args.max_kl, self.args.kl_rate)
            )
        zeros, l1 = sparsity([tuple(affine.parameters()) for affine in affines])
        metrics["zero_neurons"].append(zeros)
        metrics["l1"].append(l1)
        metrics["beta"].append(self.beta)

    def worst_occupations(self, most: int = 5) -> list[tuple[str, list[float]]]:
        """The occupations whose latest counted answers are the most unequal, and the groups' shares of each."""
        reward = self.fairness_reward
        shares = {} if reward is None else {name: reward.shares(name) for name in reward.counts}
        return sorted(shares.items(), key=lambda item: -float(imbalance(torch.tensor(item[1]))))[:most]

    def log(self, logs: dict[str, float], start_time: Optional[float] = None) -> None:
        """Log the metrics of TRL and of the objective, and at level INFO the worst occupations."""
        super().log(logs, start_time)
        worst = self.worst_occupations()
        if worst and self.accelerator.is_main_process:
            lines = (
                f"{name}: " + ", ".join(f"{g} {s:.2f}" for g, s in zip(self.groups, shares)) for name, shares in worst
            )
            logger.info("Most unequal occupations: " + "; ".join(lines))
            table = DataFrame(
                [(self.state.global_step, name, *shares) for name, shares in worst],
                columns=["step", "occupation", *self.groups],
            )
            for tracker in self._trackers():
                tracker.log({"worst_occupations": tracker.Table(dataframe=table)})

    def _trackers(self) -> list[Any]:
        """The modules of the trackers that take tables, as TRL uses them for its completions."""
        trackers = [import_module(name) for name in ("wandb", "trackio") if name in (self.args.report_to or ())]
        return [t for t in trackers if t.__name__ != "wandb" or t.run is not None]

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """
        As TRL's, but `resume_from_checkpoint=True` passes over a checkpoint that was not written to its end, and such
        a checkpoint named explicitly is refused.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = _last_complete_checkpoint(self.args.output_dir)
        elif isinstance(resume_from_checkpoint, str) and not _is_complete(resume_from_checkpoint):
            raise ValueError(
                f"{resume_from_checkpoint} is not a complete checkpoint: trainer_state.json, which is written last, "
                "is missing or broken. Resume from an earlier one."
            )
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _save(self, output_dir: Optional[str] = None, state_dict: Any = None) -> None:
        """As TRL's, without the pickle of the arguments: what is saved can be published as it is."""
        super()._save(output_dir, state_dict)
        Path(output_dir or self.args.output_dir, TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """
        As TRL's, with the text of `peft_dso.export.model_card`: how to load and steer the adapter, what it was trained
        on, and what was measured of it (nothing, unless a report lies in the output folder). TRL's tags stay.
        """
        super().create_model_card(*args, **kwargs)
        folder = Path(self.args.output_dir)
        if not self.is_world_process_zero() or not (folder / SAFETENSORS_WEIGHTS_NAME).is_file():
            return
        tags = ModelCard.load(folder / "README.md").data.get("tags") or []
        trained_on = (
            f"{len(self.train_dataset)} questions about {len(set(self.train_dataset['occupation']))} occupations "
            f"(groups: {', '.join(self.groups)}), {self.state.global_step} steps."
        )
        if self.retain_rows:
            trained_on += f" On {len(self.retain_rows)} more it was held to the base model's answers."
        path = save_card(folder, repo_id=self.hub_model_id, trained_on=trained_on)
        card = ModelCard.load(path)
        card.data["tags"] = sorted({*tags, *(card.data.get("tags") or [])})
        card.save(path)

    def push_to_hub(
        self,
        commit_message: Optional[str] = "End of training",
        blocking: bool = True,
        token: Optional[str] = None,
        revision: Optional[str] = None,
        private: Optional[bool] = None,
        **kwargs: Any,
    ) -> Any:
        """
        Save the adapter with its card and upload it to `args.hub_model_id`. Unlike the parent's, nothing but
        safetensors, JSON, Markdown and PNG files leaves the folder.

        Args:
            commit_message (`str`, defaults to `"End of training"`): of the commit.
            blocking (`bool`, defaults to `True`): wait for the upload.
            token (`str`, *optional*): default `args.hub_token`, or the stored one.
            revision (`str`, *optional*): branch; default `args.hub_revision`, or main.
            private (`bool`, *optional*): whether to make a new repository private; default `args.hub_private_repo`.
            **kwargs: for `create_model_card`.

        Returns:
            `CommitInfo`: the commit, or a `Future` of it if not `blocking`.
        """
        token = token if token is not None else self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**{"model_name": str(self.hub_model_id).rpartition("/")[2], **kwargs})
        return push_folder(
            self.args.output_dir,
            str(self.hub_model_id),
            revision=revision if revision is not None else self.args.hub_revision,
            token=token,
            commit_message=commit_message,
            blocking=blocking,
        )

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self.state.stateful_callbacks[STATE_KEY] = {
            "beta": self.beta,
            "fairness_rewards": [reward.state_dict() for reward in self._counting_rewards()],
        }
        super()._save_checkpoint(model, trial)


class _DSOCallback(TrainerCallback):
    """Ties the trainer's own state to the run of transformers' loop."""

    def __init__(self, trainer: DSOTrainer) -> None:
        self.trainer = trainer
        self.strength: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.strength = get_steering_strength(self.trainer._dso_model, "default")
        set_steering_strength(self.trainer._dso_model, 1.0, "default")
        saved = state.stateful_callbacks.get(STATE_KEY)
        if isinstance(saved, dict):
            self.trainer.beta = saved["beta"]
            for reward, counts in zip(self.trainer._counting_rewards(), saved["fairness_rewards"]):
                reward.load_state_dict(counts)
        elif args.warm_start and self.trainer.fairness_reward is not None:
            self.trainer.observe_first_pass()

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer._micro_step = 0

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.before_optimizer_step()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        self.trainer.after_optimizer_step(optimizer)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        set_steering_strength(self.trainer._dso_model, self.strength, "default")


def _as_rows(dataset: Any, name: str, required: Sequence[str] = ()) -> list[dict[str, Any]]:
    if dataset is None:
        raise ValueError(f"{name} is missing: give a datasets.Dataset or a list of rows.")
    if isinstance(dataset, (str, Mapping)) or not hasattr(dataset, "__len__"):
        raise TypeError(f"{name} must be a datasets.Dataset or a list of rows, got {type(dataset).__name__}.")
    rows = [dict(row) for row in dataset]
    for number, row in enumerate(rows):
        for column in required:
            if not row.get(column):
                raise ValueError(f"{name}, row {number}: the column {column!r} is missing or empty.")
    return rows


def _check_adapter(model: Any) -> dict[str, torch.Tensor]:
    """That a PeftModel holds a trainable DSO adapter "default"; returns copies of its vectors."""
    config = model.peft_config.get("default")
    if not isinstance(config, DSOConfig):
        raise ValueError(
            "The model must hold a DSO adapter called 'default'; it holds "
            + ", ".join(f"{name!r} ({c.peft_type})" for name, c in model.peft_config.items())
            + "."
        )
    vectors = {name: p for name, p in model.named_parameters() if ".dso_affine.default." in name}
    if not any(p.requires_grad for p in vectors.values()):
        raise ValueError("The adapter is frozen. Load it with PeftModel.from_pretrained(..., is_trainable=True).")
    return {name: p.detach().clone() for name, p in vectors.items()}


def _check_vllm(model: Any, peft_config: Optional[PeftConfig]) -> None:
    """TRL merges the adapter before each vLLM rollout; what cannot be merged would be lost."""
    config: Any = model.peft_config["default"] if is_peft_model(model) else peft_config
    norms = [m for m in model.modules() if is_norm(m)] if isinstance(model, nn.Module) else []
    home = bool(norms) and all(getattr(norm, "bias", None) is not None for norm in norms)
    if config.learn_shift and not home:
        raise ValueError(
            "use_vllm=True merges the adapter into the model for each rollout, and a shift cannot be merged into an "
            "RMSNorm. Generate with transformers (use_vllm=False), or train with DSOConfig(learn_shift=False)."
        )


def _is_complete(folder: str) -> bool:
    try:
        with open(os.path.join(folder, "trainer_state.json"), encoding="utf-8") as file:
            json.load(file)
    except (OSError, ValueError):
        return False
    return True


def _last_complete_checkpoint(output_dir: str) -> str:
    last = get_last_checkpoint(output_dir) if os.path.isdir(output_dir) else None
    names = [name for name in (os.listdir(output_dir) if last else []) if name.startswith("checkpoint-")]
    for name in sorted(names, key=lambda n: -int(n.rpartition("-")[2]) if n.rpartition("-")[2].isdecimal() else 1):
        if _is_complete(os.path.join(output_dir, name)):
            return os.path.join(output_dir, name)
    raise ValueError(f"There is no complete checkpoint in {output_dir!r} to resume from.")
