"""Counters of what is steered, beside vLLM's own on `/metrics`."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from functools import cache
from typing import Any

from .params import FIELD


@cache
def _counters() -> tuple[Any, Any, Any]:
    """
    Requests, prompt tokens and generated tokens by adapter.

    Not called `vllm:...`: vLLM removes collectors of that name when it sets up its own
    (v1/metrics/prometheus.py, unregister_vllm_metrics).
    """
    from prometheus_client import Counter

    labels = ["adapter"]
    return (
        Counter("peft_dso:steered_requests", "Requests at a strength other than 0.", labels),
        Counter("peft_dso:steered_prompt_tokens", "Prompt tokens of steered requests.", labels),
        Counter("peft_dso:steered_generation_tokens", "Tokens that steered requests generated.", labels),
    )


def _steered(request: Any) -> tuple[str, ...]:
    params = request.sampling_params
    strengths = (params.extra_args or {}).get(FIELD) if params is not None else None
    # Anything else is of a request that came past the input processor; the engine checks it.
    return tuple(strengths) if isinstance(strengths, Mapping) else ()


def count_request(processor: Any, request: Any) -> Any:
    """
    Count a request that has been checked.

    Args:
        processor (`InputProcessor`): of the front end.
        request (`EngineCoreRequest`): with its strengths written out.

    Returns:
        `EngineCoreRequest`: the request.
    """
    if processor.dso is not None:
        requests, prompt_tokens, _ = _counters()
        for adapter in _steered(request):
            requests.labels(adapter).inc()
            prompt_tokens.labels(adapter).inc(len(request.prompt_token_ids or ()))
    return request


def install() -> None:
    """Hook the front end's output processor, which sees the tokens of every request."""
    from vllm.v1.engine.output_processor import OutputProcessor

    if hasattr(OutputProcessor.process_outputs, "dso"):
        return
    add, process = OutputProcessor.add_request, OutputProcessor.process_outputs

    @functools.wraps(add)
    def add_and_note(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        result = add(self, request, *args, **kwargs)
        state = self.request_states.get(request.request_id)
        if state is not None:
            state.dso = _steered(request)
        return result

    @functools.wraps(process)
    def process_and_count(self: Any, engine_core_outputs: Any, *args: Any, **kwargs: Any) -> Any:
        for output in engine_core_outputs:
            adapters = getattr(self.request_states.get(output.request_id), "dso", ())
            for adapter in adapters:
                _counters()[2].labels(adapter).inc(len(output.new_token_ids))
        return process(self, engine_core_outputs, *args, **kwargs)

    process_and_count.dso = True  # type: ignore[attr-defined]
    OutputProcessor.add_request = add_and_note
    OutputProcessor.process_outputs = process_and_count
