"""The proof that what is to be steered is steered: a forward pass that looks at every norm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from .norms import norm_width
from .steering import Steering


PROBE_TOKENS = 7


@torch.inference_mode()
def probe(steering: Steering) -> list[str]:
    """
    Run a few tokens through the model without compilation and find every steered norm that is not called, or with
    something else than one row per token: its output would be unsteered, or wrongly steered, without a word.

    Args:
        steering (`Steering`): of this worker; all workers do this at the same time.

    Returns:
        `list[str]`: what is wrong, by norm.
    """
    seen: dict[str, list[tuple[int, ...]]] = {name: [] for name in steering.norms}
    expected: list[int] = []
    compiled: list[Any] = [m for m in steering.model.modules() if getattr(m, "do_not_compile", None) is False]
    hook = steering.model.register_forward_pre_hook(
        lambda module, args, kwargs: expected.append(kwargs["positions"].shape[-1]), with_kwargs=True
    )
    try:
        for module in compiled:
            module.do_not_compile = True
        for name, norm in steering.norms.items():
            norm.forward = _recording(norm.forward, seen[name])
        tokens = min(PROBE_TOKENS, steering.runner.max_num_tokens)
        v2 = hasattr(steering.runner, "model_state")
        steering.runner._dummy_run(tokens, is_profile=True, skip_eplb=True, **({"skip_attn": True} if v2 else {}))
    finally:
        hook.remove()
        for module in compiled:
            module.do_not_compile = False
        for norm in steering.norms.values():
            norm.__dict__.pop("forward", None)
    problems = []
    for name, norm in steering.norms.items():
        rows = (expected[-1], norm_width(norm)) if expected else None
        if not seen[name]:
            problems.append(f"{name} is never called (its weight goes to a fused kernel)")
        elif any(shape[-2:] != rows or any(n != 1 for n in shape[:-2]) for shape in seen[name]):
            problems.append(f"{name} is called with {seen[name][0]}, not with one row per token")
    return problems


def _recording(forward: Callable[..., Any], shapes: list[tuple[int, ...]]) -> Callable[..., Any]:
    def recorded(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        shapes.append(tuple((output[0] if isinstance(output, tuple) else output).shape))
        return output

    return recorded
