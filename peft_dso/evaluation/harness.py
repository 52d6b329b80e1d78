"""General ability, measured by lm-evaluation-harness with the model at each strength."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, Optional

from torch import nn

from .knob import Knob, checked_strengths, knob_of
from .measures import Measure
from .report import aligned


def evaluate_tasks(
    model: nn.Module,
    processor: Any,
    tasks: Sequence[str],
    strengths: Optional[Sequence[float]] = None,
    *,
    knob: Optional[Knob] = None,
    limit: Optional[int] = None,
    include_path: Optional[str] = None,
    batch_size: int = 8,
    num_fewshot: Optional[int] = None,
    apply_chat_template: bool = False,
) -> dict[float, dict[str, Measure]]:
    """
    Run tasks of lm-evaluation-harness at several strengths.

    Args:
        model (`nn.Module`): a model, with an adapter or without; its strength is restored afterwards.
        processor (`PreTrainedTokenizerBase` or `ProcessorMixin`): its tokenizer, or its processor for tasks with
            pictures.
        tasks (`Sequence[str]`): names of the harness's tasks.
        strengths (`Sequence[float]`, *optional*): the strengths; default those that suit the knob.
        knob (`Knob`, *optional*): what they turn; default [`~peft_dso.evaluation.knob.knob_of`] the model.
        limit (`int`, *optional*): documents per task, for a quick look.
        include_path (`str`, *optional*): folder with task files of one's own.
        batch_size (`int`, defaults to 8): documents per batch.
        num_fewshot (`int`, *optional*): examples before each document; default the task's own number. The harness
            leaves a task whose file says 0 at that; a warning says so.
        apply_chat_template (`bool`, defaults to `False`): ask as a chat.

    The harness gives examples without their pictures: `num_fewshot` above 0 is for tasks of text.

    Returns:
        `dict[float, dict[str, Measure]]`: by strength and `"task/metric"`, with the harness's own standard error.

    Raises:
        ImportError: lm-evaluation-harness is missing.
        ValueError: no task is given, the harness does not know one, a number is out of range, there is no chat
            template for a chat, a task has pictures and the model reads none, or the knob rewrites questions and has
            no `system_instruction` that would do the same to the tasks.
    """
    for name, value, least in (("limit", limit, 1), ("num_fewshot", num_fewshot, 0)):
        if value is not None and value < least:
            raise ValueError(f"{name}={value!r}: at least {least}.")
    knob = knob_of(model) if knob is None else knob
    strengths = checked_strengths(knob, strengths)
    instruction: Optional[str] = getattr(knob, "system_instruction", None)
    if getattr(knob, "rewrite", None) is not None and instruction is None and any(strengths):
        raise ValueError(
            f"{knob.name} rewrites questions; give it a system_instruction, which the tasks are asked with."
        )
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ImportError(
            "General ability is measured by lm-evaluation-harness. Install it with: pip install 'peft_dso[harness]'"
        ) from error
    manager = TaskManager(include_path=include_path)
    unknown = [task for task in tasks if task not in manager.all_tasks]
    if unknown or not tasks:
        raise ValueError(f"lm-evaluation-harness knows no task {unknown[0]!r}." if unknown else "No task is given.")
    tokenizer = getattr(processor, "tokenizer", processor)
    if apply_chat_template and not (getattr(processor, "chat_template", None) or tokenizer.chat_template):
        raise ValueError(f"{type(processor).__name__} has no chat template: leave apply_chat_template out.")
    wrapped = _wrapped(model, processor, batch_size)
    found: dict[float, dict[str, Measure]] = {}
    results: Any = {}
    for strength in strengths:
        with knob.at(strength):
            results = lm_eval.simple_evaluate(
                wrapped,
                tasks=list(tasks),
                limit=limit,
                task_manager=manager,
                bootstrap_iters=1000,
                num_fewshot=num_fewshot,
                apply_chat_template=apply_chat_template,
                system_instruction=instruction if strength else None,
            )
        found[strength] = _measures(results)
    for task, shots in results.get("n-shot", {}).items() if num_fewshot is not None else ():
        if shots != num_fewshot:
            warnings.warn(
                f"{task} was asked with {shots} examples, not num_fewshot={num_fewshot}: its own file says so.",
                stacklevel=2,
            )
    return found


def _wrapped(model: nn.Module, processor: Any, batch_size: int) -> Any:
    """The harness's own model: the multimodal one where the processor reads pictures, for tasks of text too."""
    if getattr(processor, "image_processor", None) is None:
        from lm_eval.models.huggingface import HFLM

        return HFLM(pretrained=model, tokenizer=processor, batch_size=batch_size)
    from lm_eval.models.hf_vlms import HFMultimodalLM

    class Pictured(HFMultimodalLM):
        """Takes the processor that is here; the parent would load one by the model's name."""

        def _create_tokenizer(self, *args: Any, **kwargs: Any) -> None:
            self.processor = processor
            self.tokenizer = processor.tokenizer

    return Pictured(pretrained=model, batch_size=batch_size)


def _measures(results: Any) -> dict[str, Measure]:
    """The metrics of the harness's results, with its standard errors."""
    found = {}
    for task, values in results["results"].items():
        n = results.get("n-samples", {}).get(task, {}).get("effective", 0)
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if isinstance(value, (int, float)) and kind and not metric.endswith("_stderr"):
                spread = values.get(f"{metric}_stderr,{kind}")
                spread = float(spread) if isinstance(spread, (int, float)) else float("nan")
                name = metric if kind == "none" else f"{metric},{kind}"  # a task may read answers by several filters
                found[f"{task}/{name}"] = Measure(float(value), spread, int(n))
    return found


def format_tasks(results: dict[float, dict[str, Measure]]) -> str:
    """The results of [`evaluate_tasks`] as text: one line per strength."""
    keys = list(dict.fromkeys(key for measures in results.values() for key in measures))
    lines = [["strength", *keys]]
    for strength, measures in results.items():
        lines.append([f"{strength:g}", *(f"{measures[key]}" if key in measures else "-" for key in keys)])
    return aligned(lines)
