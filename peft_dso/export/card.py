"""The model card of an adapter. It says what was measured, and where nothing was, that nothing was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..evaluation import Report, format_table, load_report, warnings_of
from ..evaluation.measures import MEASURES
from ..inspect import REPORT, read_adapter
from ..objective.penalties import sparsity


PICTURE = "sweep.png"
_TEXT_TASK, _PICTURED_TASK = "text-generation", "image-text-to-text"


def model_card(
    folder: str | os.PathLike[str],
    report: Optional[Report] = None,
    *,
    picture: bool = False,
    repo_id: Optional[str] = None,
    license: Optional[str] = None,
    trained_on: Optional[str] = None,
) -> ModelCard:
    """
    The model card of the adapter in a folder.

    Args:
        folder (`str`): with adapter_config.json and adapter_model.safetensors.
        report (`Report`, *optional*): what was measured of it.
        picture (`bool`, defaults to `False`): whether `sweep.png` lies beside the card.
        repo_id (`str`, *optional*): the name that a loader writes; default a placeholder.
        license (`str`, *optional*): an SPDX name, lower case.
        trained_on (`str`, *optional*): what it was trained on, a sentence or two.

    Returns:
        `ModelCard`: front matter and text.

    Raises:
        ValueError: the folder holds no DSO adapter.
    """
    config, sites = read_adapter(folder)
    base = config.base_model_name_or_path or None
    base = None if base and os.path.isdir(base) else base
    zeros, _ = sparsity([tuple(vectors.values()) for vectors in sites.values()])
    strength = config.steering_strength
    name = repo_id or "USER/ADAPTER"
    pictured = _reads_pictures(config, sites)
    task = _PICTURED_TASK if pictured else _TEXT_TASK if config.task_type == "CAUSAL_LM" else None
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        license=license,
        tags=["dso", "fairness", "steering", "peft"],
        pipeline_tag=task,
        model_name=name.rpartition("/")[2] if report is not None else None,
        eval_results=_eval_results(report, task) if report is not None else None,
    )
    text = f"""# {name.rpartition("/")[2]}

A steering adapter for {base or "a base model that its config does not name"}: Direct Steering Optimization (DSO,
[arXiv 2512.15926](https://arxiv.org/abs/2512.15926)) puts h + w (a * h + b) behind {len(sites)} norms of the frozen
model. It is meant to make the answers to questions about people lean less on stereotypes.

## Use it

```python
{_loading(name, base, task)}
model.set_steering_strength({_plain(strength)})  # the strength it is published with; 0 is the base model
```

To turn it off: `model.set_steering_strength(0)`, or `with model.disable_adapter():`.

## What it changes

{len(sites)} norms, {sum(t.numel() for v in sites.values() for t in v.values()):,} numbers, {zeros:.0%} of the neurons
left exactly as they were. Recommended strength: {_plain(strength)}.

## What it was trained on

{trained_on or "Its author has not said."}

## What was measured

{_measured(report, picture)}

## Limits

{_limits(report)}
"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _plain(strength: Any) -> str:
    return repr(dict(strength)) if isinstance(strength, Mapping) else f"{strength:g}"


def _measured(report: Optional[Report], picture: bool) -> str:
    if report is None:
        return "Nothing: no sweep over the strengths came with this adapter. Measure it before you rely on it:\n" + (
            "`peft-dso sweep --model BASE --adapter ADAPTER --questions QUESTIONS --out DIR`."
        )
    parts = []
    for name, results in report.sets.items():
        ns = {m.n for r in results for key, m in r.measures.items() if key in ("bias", "accuracy")}
        parts.append(
            f"{name} ({' and '.join(str(n) for n in sorted(ns))} questions; ± is the standard error, floor what a "
            f"fair model would show on them):\n\n```\n{format_table(results)}\n```"
        )
    found = warnings_of(report)
    if found:
        parts.append("\n".join(f"- {warning}" for warning in found))
    if picture:
        parts.append(f"![Bias and ability over the strength]({PICTURE})")
    described = {k: v for k, v in report.description.items() if isinstance(v, (str, int, float))}
    if described:
        parts.append("Measured: " + ", ".join(f"{key} {value}" for key, value in described.items()) + ".")
    return "\n\n".join(parts)


def _reads_pictures(config: Any, sites: Mapping[str, Any]) -> bool:
    """Whether the base is a vision-language model: by its type, or by a language model that is a part of it."""
    named = (config.base_fingerprint or {}).get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return named or any("language_model." in site for site in sites)


def _limits(report: Optional[Report]) -> str:
    sets = ", ".join(report.sets) if report is not None else None
    told = f"the questions above ({sets})" if sets else "whatever its author measures"
    groups = {"bias"} if report is None else {key for rs in report.sets.values() for r in rs for key in r.measures}
    binary = (
        "- Pro and anti mean two genders, and which of them is the stereotype of an occupation follows statistics of "
        "one country (US labour statistics for the tables that come with peft_dso).\n"
        if report is None or "gap" in groups
        else ""
    )
    return (
        f"- It is fair, if at all, about {told}, and about nothing else: other tasks, languages, groups and ways of "
        "asking were not measured.\n"
        f"{binary}"
        "- Steering costs ability as the strength grows; strengths outside [0, 1] extrapolate.\n"
        "- Greedy decoding turns a tiny lean into a certain answer and so shows more bias than sampling."
    )


def _loading(name: str, base: Optional[str], task: Optional[str]) -> str:
    """How to load the adapter: PEFT's own loader where it knows the class of the base, else the base first."""
    lines = ["import peft_dso  # first: it registers the adapter type (pip install peft_dso)"]
    if task == _TEXT_TASK and base is not None:
        return "\n".join(
            [
                *lines,
                "from peft import AutoPeftModelForCausalLM",
                "",
                f'model = AutoPeftModelForCausalLM.from_pretrained("{name}")',
            ]
        )
    auto = "AutoModelForImageTextToText" if task == _PICTURED_TASK else "AutoModelForCausalLM"
    return "\n".join(
        [
            *lines,
            "from peft import PeftModel",
            f"from transformers import {auto}",
            "",
            f'base = {auto}.from_pretrained("{base or "BASE MODEL"}")',
            f'model = PeftModel.from_pretrained(base, "{name}")',
        ]
    )


def _eval_results(report: Report, task: Optional[str]) -> list[EvalResult]:
    """One entry for each set and strength: what tells entries apart on the Hub is the data set's configuration."""
    return [
        EvalResult(
            task_type=task or _TEXT_TASK,
            dataset_type="peft_dso",
            dataset_name=f"{name} (strength {r.strength:g})",
            dataset_config=f"{name}, strength {r.strength:g}",
            dataset_args={"set": name, "strength": r.strength},
            metric_type=key,
            metric_name=f"{kind.title[0].upper()}{kind.title[1:]}",
            metric_value=round(r.measures[key].value, 4),
        )
        for name, results in report.sets.items()
        for r in results
        for key, kind in MEASURES.items()
        if kind.published and key in r.measures and r.measures[key].value == r.measures[key].value
    ]


def save_card(folder: str | os.PathLike[str], report: str | os.PathLike[str] | None = None, **options: Any) -> Path:
    """
    Write the card of an adapter's folder, with the report and the picture of a sweep beside it.

    Args:
        folder (`str`): with the adapter; gets `README.md` and, with a report, `dso_report.json` and `sweep.png`.
        report (`str`, *optional*): the folder that `peft-dso sweep` wrote, or a report file; default what already lies
            beside the adapter.
        **options: see [`model_card`].

    Returns:
        `Path`: the card.

    Raises:
        ValueError: there is no adapter, or no report where one is said to be.
    """
    target = Path(folder)
    read_adapter(target)
    if report is not None:
        source = Path(report)
        file = source / "report.json" if source.is_dir() else source
        if not file.is_file():
            raise ValueError(f"There is no report {file}. peft-dso sweep writes one.")
        load_report(file)
        for origin, name in ((file, REPORT), (file.parent / PICTURE, PICTURE)):
            if origin.is_file() and origin.resolve() != (target / name).resolve():
                shutil.copyfile(origin, target / name)
    measured = load_report(target / REPORT) if (target / REPORT).is_file() else None
    card = model_card(target, measured, picture=(target / PICTURE).is_file(), **options)
    card.save(target / "README.md")
    return target / "README.md"
