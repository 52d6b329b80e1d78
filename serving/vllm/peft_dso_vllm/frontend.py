"""The front end's side: bad requests are answered with a 400, whichever way they came."""

from __future__ import annotations

import functools
from typing import Any

from vllm.exceptions import VLLMValidationError

from . import http, metrics
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
        http.install()  # not at the plug-in's start: an engine or a worker has no use for the HTTP classes
        init(self, vllm_config, *args, **kwargs)

    @functools.wraps(process_inputs)
    def process_and_check(self: Any, *args: Any, **kwargs: Any) -> Any:
        request = process_inputs(self, *args, **kwargs)
        try:
            return metrics.count_request(self, _checked(self, request))
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


def install() -> None:
    """Hook the front end's classes."""
    _hook_arguments()
    _hook_processor()
    metrics.install()
