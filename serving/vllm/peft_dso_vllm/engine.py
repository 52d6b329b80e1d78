"""The engine core's side: refuses what cannot be steered rightly, and keeps the KV cache of one steering to itself."""

from __future__ import annotations

import functools
import logging
from typing import Any

from . import slots
from .settings import RESUMABLE, Settings, refuse_fields, settings_of


# A child of vLLM's logger, so that its handlers and format apply.
logger = logging.getLogger("vllm.peft_dso")


def unservable(vllm_config: Any) -> str | None:
    """
    Why an engine with this configuration cannot steer.

    Args:
        vllm_config (`VllmConfig`): its configuration.

    Returns:
        `str`: the setting and the remedy; `None` where nothing stands against it.
    """
    model, parallel = vllm_config.model_config, vllm_config.parallel_config
    speculative = vllm_config.speculative_config
    found = [
        (model.runner_type != "generate", "pooling models: nothing is generated there. Use --runner generate"),
        (model.is_encoder_decoder, "encoder-decoder models: the encoder runs outside the batch. Use another base"),
        (getattr(model, "is_diffusion", False), "diffusion models: their tokens are not rows of a batch"),
        (parallel.use_ubatching, "microbatches, which split a batch's tokens. Start without --enable-dbo"),
        (
            parallel.prefill_context_parallel_size > 1,
            "prefill context parallelism, which splits a request's tokens. Set --prefill-context-parallel-size 1",
        ),
        (
            vllm_config.cache_config.kv_sharing_fast_prefill,
            "--kv-sharing-fast-prefill, which leaves out rows of the batch. Start without it",
        ),
        (
            vllm_config.kv_transfer_config is not None,
            "KV connectors, which may store a KV cache without its salt. Start without --kv-transfer-config",
        ),
        (
            speculative is not None and getattr(speculative, "enable_adaptive_verification", False),
            "adaptive verification, which changes the number of tokens on the device. Switch it off",
        ),
    ]
    for refused, reason in found:
        if refused:
            return f"DSO adapters cannot be served with {reason}."
    return None


def summary(settings: Settings, norms: int, workers: int) -> str:
    """One line that says what is steered."""
    adapters = ", ".join(f"{a.name} ({a.path})" for a in settings.slots if a is not None) or "no adapter yet"
    default = ", ".join(f"{name} at {value:g}" for name, value in settings.default.items()) or "the base model"
    free = sum(a is None for a in settings.slots)
    return (
        f"DSO steers {norms} norms on {workers} worker{'s' if workers > 1 else ''}: {adapters}; "
        f"{free} free slot{'s' if free != 1 else ''}; a request without dso_strength gets {default}"
    )


def _reports(core: Any) -> list[dict[str, Any]]:
    try:
        return list(core.model_executor.collective_rpc("dso_report"))
    except Exception as error:
        raise ValueError(
            "A worker has not loaded the steering, so that it would serve the base model. Is peft-dso-vllm installed "
            f"for every worker, and does VLLM_PLUGINS, if set, name peft_dso? ({type(error).__name__}: {error})"
        ) from error


def start(core: Any, settings: Settings) -> None:
    """
    Check that all workers together steer every site of every adapter, and say what is steered.

    Args:
        core (`EngineCore`): with its model loaded on all workers.
        settings (`Settings`): what the engine was started with.

    Raises:
        ValueError: something cannot be steered rightly.
    """
    reason = unservable(core.vllm_config)
    if reason:
        raise ValueError(reason)
    reports = _reports(core)
    norms = {name for report in reports for name in report["norms"]}
    problems = sorted({problem for report in reports for problem in report["problems"]})
    problems += [f"{name} is on no worker" for report in reports for name in report["absent"] if name not in norms]
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise ValueError(
            "This model cannot be steered in vLLM: " + "; ".join(problems[:3]) + more + ". Leave these norms out "
            "(DSOConfig(exclude_modules=...)), or export a checkpoint at one strength (peft-dso export)."
        )
    core.dso_num_sites = len({name for report in reports for name in report["blocks"]})
    for adapter in settings.slots:
        if adapter is not None:
            slots.check_base(adapter, core.vllm_config.model_config, core.dso_num_sites)
    logger.info(summary(settings, len(norms), len(reports)))


def install() -> None:
    """Hook the engine core's methods; each is called later than the plug-in is loaded, also in a spawned process."""
    from vllm.v1.engine.core import EngineCore

    if hasattr(EngineCore.preprocess_add_request, "dso"):
        return
    initialize, preprocess = EngineCore._initialize_kv_caches, EngineCore.preprocess_add_request
    add = EngineCore.add_request

    @functools.wraps(initialize)
    def initialize_and_check(self: Any, vllm_config: Any) -> Any:
        self.dso = settings_of(vllm_config)
        if self.dso is not None:
            start(self, self.dso)
        return initialize(self, vllm_config)

    @functools.wraps(preprocess)
    def preprocess_and_salt(self: Any, request: Any) -> Any:
        params = request.sampling_params
        fields = params.extra_args if params is not None else None
        # Checked here once more: not every front end is vLLM's own Python one.
        steered: dict[str, str] = {}
        if self.dso is None:
            refuse_fields(fields)
        else:
            loaded = self.dso.copy()  # another thread loads and unloads meanwhile
            strengths = loaded.strengths(fields)
            if strengths and request.resumable:
                raise ValueError(RESUMABLE)
            request.cache_salt = loaded.salt(strengths, request.cache_salt)
            steered = loaded.identities(strengths)
        prepared, wave = preprocess(self, request)
        prepared.dso = steered
        return prepared, wave

    @functools.wraps(add)
    def add_if_still_loaded(self: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        steered = getattr(request, "dso", None)
        # Between the two, an adapter may have been unloaded, and another one loaded under its name.
        if steered and self.dso.identities(steered) != steered:
            logger.warning("Request %s is ended: its adapter was unloaded meanwhile", request.request_id)
            if not hasattr(self, "_send_error_outputs_to_client"):
                raise ValueError("The adapter of this request was unloaded meanwhile.")
            self._send_error_outputs_to_client([request.request_id], request.client_index)
            return None
        return add(self, request, *args, **kwargs)

    preprocess_and_salt.dso = True  # type: ignore[attr-defined]
    EngineCore._initialize_kv_caches = initialize_and_check
    EngineCore.preprocess_add_request = preprocess_and_salt
    EngineCore.add_request = add_if_still_loaded
    EngineCore.dso_load, EngineCore.dso_unload = slots.load, slots.unload
    EngineCore.dso_in_use = slots.in_use
