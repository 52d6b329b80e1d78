"""The model card of an adapter. It says what was measured, and where nothing was, that nothing was."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from ..evaluation import Report, format_table, load_report, warnings_of
from ..evaluation.measures import MEASURES
from ..inspect import REPORT, VECTORS, is_of, read_adapter, report_of
from ..objective.penalties import sparsity


PICTURE = "sweep.png"
_TEXT_TASK, _PICTURED_TASK = "text-generation", "image-text-to-text"
_UNSAID = "Its author has not said."
_TRAINED_ON = "## What it was trained on"
COMPARISON = ("<!-- comparison -->", "<!-- end of comparison -->")  # around the section of `peft-dso compare`


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
    neurons = sum(next(iter(vectors.values())).numel() for vectors in sites.values())
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
{_loading(name, base, task, config.task_type)}
model.set_steering_strength({_plain(strength)})  # the strength it is published with
```

{_turning_off(config.modules_to_save)}

## What it changes

{len(sites)} norms, {sum(t.numel() for v in sites.values() for t in v.values()):,} numbers.
{round(zeros * neurons):,} of {neurons:,} neurons are left exactly as they were.
Recommended strength: {_plain(strength)}.

{_TRAINED_ON}

{trained_on or _UNSAID}

## What was measured

{_measured(report, picture)}

## Limits

{_limits(report)}
"""
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _turning_off(modules: Optional[Sequence[str]]) -> str:
    """How to get the base model back."""
    if modules:
        return (
            f"It also holds {', '.join(modules)}, which no strength turns: to turn it off, "
            "`with model.disable_adapter():`. At strength 0 those still act."
        )
    return "To turn it off: `model.set_steering_strength(0)`, or `with model.disable_adapter():`."


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
    described = {k: v for k, v in report.description.items() if isinstance(v, (str, int, float)) and k != VECTORS}
    if described:
        parts.append("Measured: " + ", ".join(f"{key} {value}" for key, value in described.items()) + ".")
    return "\n\n".join(parts)


def _reads_pictures(config: Any, sites: Mapping[str, Any]) -> bool:
    """Whether the base is a vision-language model: by its type, or by a language model that is a part of it."""
    named = (config.base_fingerprint or {}).get("model_type") in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
    return named or any(part in site for site in sites for part in ("language_model.", "text_model."))


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


def _loading(name: str, base: Optional[str], task: Optional[str], task_type: Optional[str]) -> str:
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
    auto = "AutoModelForSeq2SeqLM" if task_type == "SEQ_2_SEQ_LM" else "AutoModelForCausalLM"
    auto = "AutoModelForImageTextToText" if task == _PICTURED_TASK else auto
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
    Write the card of an adapter's folder, with the report and the picture of a sweep beside it. The section that
    `peft-dso compare` has put into the card stays.

    Args:
        folder (`str`): with the adapter; gets `README.md` and, with a report, `dso_report.json` and `sweep.png`.
        report (`str`, *optional*): the folder that `peft-dso sweep` wrote, or a report file; default what already lies
            beside the adapter. A report of other vectors is left out.
        **options: see [`model_card`]; the license and what it was trained on are by default those of the card that
            lies there.

    Returns:
        `Path`: the card.

    Raises:
        ValueError: there is no adapter, no report where one is said to be, or the report is of other vectors.
    """
    target = Path(folder)
    config, _ = read_adapter(target)
    if report is not None:
        source = Path(report)
        file = source / "report.json" if source.is_dir() else source
        if not file.is_file():
            raise ValueError(f"There is no report {file}. peft-dso sweep writes one.")
        if not is_of(load_report(file), config):
            raise ValueError(f"{file} is of another adapter than {target}: its {VECTORS} is another.")
        if file.resolve() != (target / REPORT).resolve():
            shutil.copyfile(file, target / REPORT)
            (target / PICTURE).unlink(missing_ok=True)  # of what was measured before
            if (file.parent / PICTURE).is_file():
                shutil.copyfile(file.parent / PICTURE, target / PICTURE)
    measured = report_of(target, config)
    path = target / "README.md"
    given = {key: value for key, value in options.items() if value is not None}
    picture = measured is not None and (target / PICTURE).is_file()
    compared = _comparison(path)
    model_card(target, measured, picture=picture, **{**_said_before(path), **given}).save(path)
    if compared:
        path.write_text(f"{path.read_text(encoding='utf-8').rstrip()}\n\n{compared}\n", encoding="utf-8")
    return path


def _comparison(path: Path) -> str:
    """The section of a comparison in a card, with its marks; empty where there is none."""
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    begin, end = (text.find(mark) for mark in COMPARISON)
    return text[begin : end + len(COMPARISON[1])] if 0 <= begin < end else ""


def _said_before(path: Path) -> dict[str, str]:
    """The license and the training that a card of this module names."""
    if not path.is_file():
        return {}
    card = ModelCard.load(path)
    found = re.search(rf"^{_TRAINED_ON}\n\n(.*?)\n\n## ", card.text, re.M | re.S)
    if found is None:
        return {}
    said = {"license": card.data.get("license"), "trained_on": found[1]}
    return {key: value for key, value in said.items() if value and value != _UNSAID}
