"""The front end's side: bad requests are answered with a 400, whichever way they came."""

from __future__ import annotations

import functools
from typing import Any

from vllm.exceptions import VLLMValidationError

from .engine import unservable
from .params import FIELD, StrengthError, is_field
from .settings import KEY, RESUMABLE, pinned, refuse_fields, settings_of


def _pin(vllm_config: Any) -> None:
    """Resolve names of the Hub to files, and refuse what cannot be served, before any process is started."""
    additional = vllm_config.additional_config
    if isinstance(additional, dict) and KEY in additional:
        vllm_config.additional_config = {**additional, KEY: pinned(additional[KEY])}
        reason = unservable(vllm_config)
        if reason:
            raise ValueError(reason)


def _checked(processor: Any, request: Any) -> Any:
    """The request with its strengths checked and written out, defaults included, for the engine and the logs."""
    params = request.sampling_params
    if params is None:
        return request
    if processor.dso is None:
        refuse_fields(params.extra_args)
        return request
    strengths = processor.dso.strengths(params.extra_args)
    if strengths and request.resumable:
        raise StrengthError(RESUMABLE)
    others = {key: value for key, value in (params.extra_args or {}).items() if not is_field(key)}
    params.extra_args = {**others, FIELD: strengths}  # a new mapping: the caller's may be shared between prompts
    return request


def _hook_processor() -> None:
    from vllm.v1.engine.input_processor import InputProcessor

    if hasattr(InputProcessor.process_inputs, "dso"):
        return
    process_inputs, init = InputProcessor.process_inputs, InputProcessor.__init__

    @functools.wraps(init)
    def init_with_settings(self: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        self.dso = settings_of(vllm_config)
        _hook_requests()  # not at the plug-in's start: an engine or a worker has no use for the HTTP classes
        init(self, vllm_config, *args, **kwargs)

    @functools.wraps(process_inputs)
    def process_and_check(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        try:
            return _checked(self, request)
        except StrengthError as error:
            raise VLLMValidationError(str(error), parameter=error.parameter) from error

    process_and_check.dso = True  # type: ignore[attr-defined]
    InputProcessor.__init__ = init_with_settings
    InputProcessor.process_inputs = process_and_check


def _hook_arguments() -> None:
    from vllm.engine.arg_utils import EngineArgs

    if hasattr(EngineArgs.create_engine_config, "dso"):
        return
    create = EngineArgs.create_engine_config

    @functools.wraps(create)
    def create_and_pin(self: Any, *args: Any, **kwargs: Any) -> Any:
        vllm_config = create(self, *args, **kwargs)
        _pin(vllm_config)
        return vllm_config

    create_and_pin.dso = True  # type: ignore[attr-defined]
    EngineArgs.create_engine_config = create_and_pin


def _with_fields(params: Any, request: Any) -> Any:
    """The sampling parameters with the top-level fields of an HTTP request added to its `vllm_xargs`."""
    top = {key: value for key, value in (request.model_extra or {}).items() if is_field(key)}
    if not top:
        return params
    twice = sorted(top.keys() & (params.extra_args or {}).keys())
    if twice:
        raise VLLMValidationError(f"{twice[0]!r} stands in the request and in its vllm_xargs. Give it once.")
    params.extra_args = {**(params.extra_args or {}), **top}
    return params


def _hook_requests() -> None:
    """vLLM ignores a top-level field that it does not know, so that it is carried over here."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.openai.completion.protocol import CompletionRequest
    from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

    for request_class in (ChatCompletionRequest, CompletionRequest, ResponsesRequest):
        if hasattr(request_class.to_sampling_params, "dso"):
            continue
        request_class.to_sampling_params = _carrying(request_class.to_sampling_params)
        beams = getattr(request_class, "to_beam_search_params", None)
        if beams is not None:
            request_class.to_beam_search_params = _refusing(beams)


def _carrying(to_sampling_params: Any) -> Any:
    @functools.wraps(to_sampling_params)
    def carrying(self: Any, *args: Any, **kwargs: Any) -> Any:
        return _with_fields(to_sampling_params(self, *args, **kwargs), self)

    carrying.dso = True  # type: ignore[attr-defined]
    return carrying


def _refusing(to_beam_search_params: Any) -> Any:
    @functools.wraps(to_beam_search_params)
    def refusing(self: Any, *args: Any, **kwargs: Any) -> Any:
        for key in {**(self.model_extra or {}), **(self.vllm_xargs or {})}:
            if is_field(key):
                # vLLM's beam search makes sampling parameters of its own and would drop the strength.
                raise VLLMValidationError(
                    f"{key!r} is not possible with beam search. Leave out use_beam_search, or the strength."
                )
        return to_beam_search_params(self, *args, **kwargs)

    return refusing


def install() -> None:
    """Hook the front end's classes."""
    _hook_arguments()
    _hook_processor()
