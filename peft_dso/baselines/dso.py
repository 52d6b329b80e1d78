"""DSO itself (arXiv 2512.15926), with the trainer's own defaults: the recipe, and nothing set for the comparison."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from peft import PeftModel
from transformers import PrinterCallback, TrainerCallback

from ..training import DSOTrainer, DSOTrainerConfig
from ..tuner import DSOConfig
from .places import check_bare


class _Progress(TrainerCallback):
    """Says what the trainer logs."""

    def __init__(self, progress: Callable[[str], Any]) -> None:
        self.progress = progress

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        logged = {**(logs or {})}
        shown = [f"{key} {logged[key]:.3g}" for key in ("per_occupation_bias", "kl", "retain_kl") if key in logged]
        if shown:
            self.progress(f"step {state.global_step} of {state.max_steps}: " + ", ".join(shown))


def fit_dso(
    model: Any,
    processor: Any,
    questions: Sequence[Mapping[str, Any]],
    *,
    seed: int = 0,
    progress: Callable[[str], Any] = lambda line: None,
    **settings: Any,
) -> PeftModel:
    """
    Train a DSO adapter. Strength 1 is what was trained.

    Args:
        model (`PreTrainedModel`): the base model; it is wrapped in place.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer or processor.
        questions (`Sequence[Mapping]`): the ambiguous ones are trained on, the others hold the model to the base.
        seed (`int`, defaults to 0): of the batches.
        progress (`Callable`): gets a line now and then.
        **settings: fields of [`~peft_dso.DSOTrainerConfig`] to set otherwise.

    Returns:
        `PeftModel`: in evaluation mode.

    Raises:
        ValueError: a setting is wrong, the model has an adapter already, or the questions cannot be trained on.
        FloatingPointError: the loss is no longer finite.
    """
    check_bare(model)
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {
            "save_strategy": "no", "report_to": [], "logging_steps": 5, "disable_tqdm": True, "seed": seed,
            "use_cpu": next(model.parameters()).device.type == "cpu",  # where the other methods would be fitted
        }  # fmt: skip
        trainer = DSOTrainer(
            model=model,
            args=DSOTrainerConfig(folder, **{**quiet, **settings}),
            train_dataset=list(questions),
            processing_class=processor,
            peft_config=DSOConfig(task_type="CAUSAL_LM"),
        )
        trainer.add_callback(_Progress(progress))
        trainer.remove_callback(PrinterCallback)  # the lines go to `progress`
        trainer.train()
        # Without the autocast that a training in bfloat16 leaves on it: the adapter is used in float32 from here on.
        fitted: Any = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False)
        return fitted.eval()
