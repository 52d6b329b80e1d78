"""The worker's side: makes a model steerable when it is loaded, and writes the strengths before each forward pass."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from .adapters import Adapter
from .probe import probe
from .settings import settings_of
from .steering import Steering


def attach(worker: Any) -> None:
    """
    Make a worker's model steerable as soon as it is loaded.

    Args:
        worker (`WorkerBase`): with its model runner made and its model not loaded.
    """
    settings = settings_of(worker.vllm_config)
    runner = getattr(worker, "model_runner", None)
    if settings is None or runner is None:
        return
    load_model = runner.load_model

    @functools.wraps(load_model)
    def load_and_steer(*args: Any, **kwargs: Any) -> Any:
        result = load_model(*args, **kwargs)
        steering = Steering(runner, settings)
        _hook_runner(runner, steering)
        steering.problems += probe(steering)
        worker.dso_report = steering.report
        worker.dso_load = functools.partial(_load, steering)
        worker.dso_unload = steering.unload
        return result

    runner.load_model = load_and_steer


def _load(steering: Steering, slot: int, entry: dict[str, Any]) -> str | None:
    """Load an adapter; whatever goes wrong is the answer, since an exception would end some executors."""
    try:
        steering.load(slot, Adapter(**entry))
    except (ValueError, OSError) as error:
        return str(error)
    except Exception as error:
        return f"The adapter {entry.get('name')!r} cannot be read: {type(error).__name__}: {error}"
    return None


def _hook_runner(runner: Any, steering: Steering) -> None:
    """Write the strengths wherever the runner prepares its inputs, before each forward pass."""
    state = getattr(runner, "model_state", None)
    if state is not None:
        add_request, prepare_inputs = state.add_request, state.prepare_inputs

        def add(req_index: int, new_req_data: Any) -> Any:
            steering.add_v2(req_index, new_req_data)
            return add_request(req_index, new_req_data)

        def prepare(input_batch: Any, req_states: Any) -> Any:
            steering.write_v2(input_batch)
            return prepare_inputs(input_batch, req_states)

        state.add_request, state.prepare_inputs = add, prepare
        return
    prepare_v1 = runner._prepare_inputs

    def prepare_and_write(scheduler_output: Any, num_scheduled_tokens: np.ndarray) -> Any:
        result = prepare_v1(scheduler_output, num_scheduled_tokens)
        steering.write_v1(scheduler_output, num_scheduled_tokens)
        return result

    runner._prepare_inputs = prepare_and_write


def install() -> None:
    """Hook the worker's wrapper: importing a worker's own module here would come before its platform's set-up."""
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    if hasattr(WorkerWrapperBase.init_device, "dso"):
        return
    init_device = WorkerWrapperBase.init_device

    @functools.wraps(init_device)
    def init_and_attach(self: Any) -> Any:
        result = init_device(self)
        attach(self.worker)
        return result

    init_and_attach.dso = True  # type: ignore[attr-defined]
    WorkerWrapperBase.init_device = init_and_attach
