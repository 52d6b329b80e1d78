"""The model card of an adapter. It says what was measured, and where nothing was, that nothing was."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData

from ..evaluation import Report, format_table, load_report
from ..inspect import REPORT, read_adapter
from ..objective.penalties import sparsity


PICTURE = "sweep.png"
PUBLISHED = ["*.safetensors", "*.json", "*.md", "*.png"]  # what may leave for the Hub
_NAMES = {
    "bias": "Per-occupation bias (probabilities)",
    "bias_first_choice": "Per-occupation bias (first choices)",
    "gap": "Stereotype gap",
    "abstention": "Abstention",
    "accuracy": "Unambiguous accuracy",
    "kl": "KL to the base model (nats)",
}


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
    data = ModelCardData(
        base_model=base,
        library_name="peft",
        license=license,
        tags=["dso", "fairness", "steering", "peft"],
        pipeline_tag="text-generation" if config.task_type == "CAUSAL_LM" else None,
        model_name=name.rpartition("/")[2] if report is not None else None,
        eval_results=_eval_results(report) if report is not None else None,
    )
    text = f"""# {name.rpartition("/")[2]}

A steering adapter for {base or "a base model that its config does not name"}: Direct Steering Optimization (DSO,
[arXiv 2512.15926](https://arxiv.org/abs/2512.15926)) puts h + w (a * h + b) behind {len(sites)} norms of the frozen
model. It is meant to make the answers to questions about people lean less on stereotypes.

## Use it

```python
import peft_dso  # first: it registers the adapter type (pip install peft_dso)
from peft import AutoPeftModelForCausalLM

model = AutoPeftModelForCausalLM.from_pretrained("{name}")
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
    if picture:
        parts.append(f"![Bias and ability over the strength]({PICTURE})")
    described = {k: v for k, v in report.description.items() if isinstance(v, (str, int, float))}
    if described:
        parts.append("Measured: " + ", ".join(f"{key} {value}" for key, value in described.items()) + ".")
    return "\n\n".join(parts)


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


def _eval_results(report: Report) -> list[EvalResult]:
    found = []
    for name, results in report.sets.items():
        for r in results:
            for key, title in _NAMES.items():
                m = r.measures.get(key)
                if m is not None and m.value == m.value:
                    found.append(
                        EvalResult(
                            task_type="text-generation",
                            dataset_type="peft_dso",
                            dataset_name=f"{name} (strength {r.strength:g})",
                            metric_type=key,
                            metric_name=title,
                            metric_value=round(m.value, 4),
                        )
                    )
    return found


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


def push_adapter(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: Optional[bool] = None,
    revision: Optional[str] = None,
    token: Optional[str] = None,
    commit_message: str = "Upload DSO adapter",
) -> str:
    """
    Upload the folder of an adapter, with its card, report and picture. `model.push_to_hub` uploads the adapter too,
    but with transformers' empty card; a card that is on the Hub already is kept by it.

    Args:
        folder (`str`): with the adapter; nothing but safetensors, JSON, Markdown and PNG files leaves it.
        repo_id (`str`): `USER/NAME`; made if it does not exist.
        private (`bool`, *optional*): whether a new repository is private.
        revision (`str`, *optional*): branch; made if it does not exist.
        token (`str`, *optional*): default the stored one.
        commit_message (`str`): of the commit.

    Returns:
        `str`: address of the commit.

    Raises:
        ValueError: the folder holds no DSO adapter.
    """
    read_adapter(folder)
    api = HfApi(token=token)
    name = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    if revision is not None:
        api.create_branch(name, branch=revision, exist_ok=True)
    commit = api.upload_folder(
        repo_id=name,
        folder_path=Path(folder),
        revision=revision,
        commit_message=commit_message,
        allow_patterns=PUBLISHED,
        ignore_patterns=["_*", "checkpoint-*"],
    )
    return str(commit.commit_url)
