"""The lines that reproduce what is on the page: in Python, and as a request to a server."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ..models import SMOLLM2


def python_lines(
    source: str, adapters: Mapping[str, str], strengths: Mapping[str, float], prompt: Any, answers: Sequence[str]
) -> str:
    """
    Python that prints the probabilities on the page.

    Args:
        source (`str`): folder or name of the base model.
        adapters (`Mapping[str, str]`): by name, folder or name on the Hub; the first is loaded first.
        strengths (`Mapping[str, float]`): by adapter.
        prompt (`str` or `list[dict]`): what the model reads.
        answers (`Sequence[str]`): as they follow it.

    Returns:
        `str`: the lines.
    """
    (first, *others) = adapters
    lines = [
        "import peft_dso  # registers the adapter type",
        "from peft import PeftModel",
        "from peft_dso.models import load_base",
        "from peft_dso.scoring import encode_question, score",
        "",
        f"base, processor = load_base({source!r})",
        f"model = PeftModel.from_pretrained(base, {adapters[first]!r}, adapter_name={first!r})",
    ]
    lines += [f"model.load_adapter({adapters[name]!r}, {name!r})" for name in others]
    if others:
        lines.append(f"model.base_model.set_adapter({list(adapters)!r})  # both at once: their effects add")
    lines += [f"question = encode_question(processor, {prompt!r}, {list(answers)!r})", "for share in (0, 1):"]
    lines += [
        f"    model.set_steering_strength(share * {strengths.get(name, 0.0):g}, adapter_name={name!r})"
        for name in adapters
    ]
    lines += ["    ((_, scores),) = score(model, [question])", "    print(scores.answers.exp().tolist())"]
    return "\n".join(lines)


def server_request(
    source: str, adapters: Mapping[str, str], strengths: Mapping[str, float], prompt: Any, length: int = 64
) -> str:
    """
    The request that has a vLLM server with the plug-in write on from the prompt at these strengths.

    Args:
        source, adapters, strengths, prompt: as in [`python_lines`].
        length (`int`, defaults to 64): tokens to write.

    Returns:
        `str`: shell lines.
    """
    source = "HuggingFaceTB/SmolLM2-135M-Instruct" if source == SMOLLM2 else source
    config = json.dumps({"dso": {"adapters": dict(adapters)}})
    wanted = {name: round(float(strengths.get(name, 0.0)), 6) for name in adapters}
    body: dict[str, Any] = {"model": source}
    body |= {"prompt": prompt} if isinstance(prompt, str) else {"messages": prompt}
    body |= {"max_tokens": length, "temperature": 0}
    body["dso_strength"] = next(iter(wanted.values())) if len(wanted) == 1 else wanted
    path = "completions" if isinstance(prompt, str) else "chat/completions"
    return "\n".join(
        [
            "# once, where the package peft-dso-vllm is installed:",
            f"vllm serve {_quoted(source)} --additional-config {_quoted(config)}",
            "",
            f"curl http://localhost:8000/v1/{path} -H 'Content-Type: application/json' -d {_quoted(json.dumps(body))}",
        ]
    )


def _quoted(text: str) -> str:
    """Text for a shell, in single quotes."""
    return "'" + text.replace("'", "'\\''") + "'"
