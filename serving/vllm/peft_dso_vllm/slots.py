"""Loading and unloading an adapter while the engine runs, within the slots that it was started with."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from .adapters import Adapter
from .settings import Settings, open_adapter


logger = logging.getLogger("vllm.peft_dso")
PATHS = ("/v1/load_dso_adapter", "/v1/unload_dso_adapter")


def check_base(adapter: Adapter, model_config: Any, num_sites: int) -> None:
    """
    Refuse an adapter that was made for another base model.

    Args:
        adapter (`Adapter`): with the fingerprint that `peft_dso` saved, or none.
        model_config (`ModelConfig`): of the engine.
        num_sites (`int`): norms in the blocks of all workers.

    Raises:
        ValueError: model type, hidden size or number of norms differ.
    """
    text = model_config.hf_text_config
    found = {"model_type": text.model_type, "hidden_size": text.hidden_size, "num_sites": num_sites}
    differing = [
        f"{key} {value!r}, here {found[key]!r}"
        for key, value in adapter.base.items()
        if key in found and value != found[key]
    ]
    if differing:
        raise ValueError(
            f"The adapter {adapter.name!r} ({adapter.path}) was made for another base model: " + "; ".join(differing)
        )


# --- in the engine core: called by name from the front end; an error is the answer -----------------------------------


def load(core: Any, entries: list[dict[str, Any]]) -> str | None:
    """
    Load adapters into free slots of all workers, or into none.

    Args:
        core (`EngineCore`): the engine core.
        entries (`list[dict]`): adapters as [`Adapter.to_json`] writes them.

    Returns:
        `str`: what stands against it; `None` where they are loaded.
    """
    if asleep := _asleep(core):
        return asleep
    adapters = [Adapter(**entry) for entry in entries]
    try:
        for adapter in adapters:
            check_base(adapter, core.vllm_config.model_config, core.dso_num_sites)
        chosen = core.dso.place(adapters)
    except ValueError as error:
        return str(error)
    for slot, entry in zip(chosen, entries, strict=False):
        problems = [p for p in core.model_executor.collective_rpc("dso_load", args=(slot, entry)) if p]
        if problems:
            _empty(core, chosen)
            return str(problems[0])
    return None


def in_use(core: Any, name: str) -> str | None:
    """
    What stands against unloading an adapter.

    Args:
        core (`EngineCore`): the engine core.
        name (`str`): the adapter.

    Returns:
        `str`: the reason; `None` where it can be unloaded.
    """
    if asleep := _asleep(core):
        return asleep
    try:
        occupied = core.dso.occupied(name)
    except ValueError as error:
        return str(error)
    names = {core.dso.slots[slot].name for slot in occupied}
    running = sum(bool(names & set(getattr(request, "dso", ()))) for request in core.scheduler.requests.values())
    if running:
        return f"{running} requests are running with {name!r}. Try again when they are done."
    return None


def unload(core: Any, name: str) -> str | None:
    """
    Unload an adapter that no request is running with.

    Args:
        core (`EngineCore`): the engine core.
        name (`str`): the adapter.

    Returns:
        `str`: what stands against it; `None` where it is unloaded.
    """
    reason = in_use(core, name)
    if reason is None:
        _empty(core, core.dso.occupied(name))
    return reason


def _asleep(core: Any) -> str | None:
    """The vectors lie in memory that a sleeping engine has given back."""
    if getattr(core.model_executor, "is_sleeping", False):
        return "The engine sleeps. Wake it up first (/wake_up)."
    return None


def _empty(core: Any, occupied: list[int]) -> None:
    for slot in occupied:
        core.model_executor.collective_rpc("dso_unload", args=(slot,))
        core.dso.slots[slot] = None


# --- in the front end ------------------------------------------------------------------------------------------------


def _settings(engine: Any) -> Settings:
    settings: Settings | None = engine.input_processor.dso
    if settings is None:
        raise ValueError('This server steers nothing: start it with "dso" in --additional-config.')
    if engine.vllm_config.parallel_config._api_process_count > 1:
        raise ValueError("Adapters cannot be loaded with several API servers, which would not all know them.")
    return settings


def _opened(settings: Settings, name: Any, source: Any) -> list[Adapter]:
    if not isinstance(name, str):
        raise ValueError(f"The adapter's name must be text, got {name!r}.")
    if name in settings.adapters:
        raise ValueError(f"There is an adapter {name!r} already. Unload it first, or choose another name.")
    return open_adapter(name, source)


def load_adapter(llm: Any, name: str, source: Any) -> None:
    """
    Load an adapter into a free slot of an offline engine.

    Args:
        llm (`LLM`): the engine.
        name (`str`): the name that requests use.
        source (`str` or `dict`): a folder, a repository of the Hub, or a mapping of `path`, `revision`, `subfolder`.

    Raises:
        ValueError: the adapter does not fit, its name is taken, or no slot is free.
    """
    engine = llm.llm_engine
    settings = _settings(engine)
    adapters = _opened(settings, name, source)
    problem = _call(engine, "dso_load", [adapter.to_json() for adapter in adapters])
    if problem:
        raise ValueError(problem)
    settings.place(adapters)


def unload_adapter(llm: Any, name: str) -> None:
    """
    Unload an adapter of an offline engine.

    Args:
        llm (`LLM`): the engine.
        name (`str`): the adapter.

    Raises:
        ValueError: there is no such adapter, the default needs it, or requests are running with it.
    """
    engine = llm.llm_engine
    settings = _settings(engine)
    occupied = settings.occupied(name)
    problem = _call(engine, "dso_unload", name)
    if problem:
        raise ValueError(problem)
    for slot in occupied:
        settings.slots[slot] = None


def _call(engine: Any, method: str, argument: Any) -> str | None:
    core = engine.engine_core
    inner = getattr(core, "engine_core", None)
    if hasattr(inner, method):  # in this process
        return getattr(inner, method)(argument)
    return core.call_utility(method, argument)


def _changeable(engine: Any) -> Settings:
    settings = _settings(engine)
    if not settings.changeable:
        raise ValueError('Adapters are loaded and unloaded only where the server was started with "slots".')
    return settings


async def load_over_http(engine: Any, body: Any) -> dict[str, Any]:
    """
    `POST /v1/load_dso_adapter` with `name`, `path` and perhaps `revision` and `subfolder`.

    Args:
        engine (`AsyncLLM`): the server's engine.
        body (`Any`): the body of the request.

    Returns:
        `dict[str, Any]`: the names of the adapters that are loaded now.

    Raises:
        ValueError: as [`load_adapter`].
    """
    settings = _changeable(engine)
    if not isinstance(body, dict) or not {"name", "path"} <= set(body) <= {"name", "path", "revision", "subfolder"}:
        raise ValueError('The body must be {"name": ..., "path": ...}, and perhaps "revision" and "subfolder".')
    source = {key: value for key, value in body.items() if key != "name"}
    adapters = await asyncio.to_thread(_opened, settings, body["name"], source)  # which may take long
    async with _lock(engine):
        answers = await _call_all(engine, "dso_load", [adapter.to_json() for adapter in adapters])
        problem = next((answer for answer in answers if answer), None)
        if problem:
            if not all(answers):  # some engine has it and some has not: none shall
                await _call_all(engine, "dso_unload", body["name"])
            raise ValueError(problem)
        settings.place(adapters)
    for adapter in adapters:
        logger.info("Loaded the DSO adapter %s from %s, sha256 %s", adapter.name, adapter.path, adapter.sha256)
    return {"adapters": sorted(settings.adapters)}


async def unload_over_http(engine: Any, body: Any) -> dict[str, Any]:
    """
    `POST /v1/unload_dso_adapter` with `name`; arguments, return and errors as [`load_over_http`].

    New requests are refused at once, and the adapter is unloaded if none is running with it.
    """
    settings = _changeable(engine)
    if not isinstance(body, dict) or set(body) != {"name"}:
        raise ValueError('The body must be {"name": ...}.')
    async with _lock(engine):
        occupied = settings.occupied(body["name"])
        kept = [settings.slots[slot] for slot in occupied]
        for slot in occupied:
            settings.slots[slot] = None
        unloaded = False
        try:
            # All are asked first: an engine that unloads it while another refuses would end requests for nothing.
            for method in ("dso_in_use", "dso_unload"):
                answers = await _call_all(engine, method, body["name"])
                if problem := next((answer for answer in answers if answer), None):
                    if method == "dso_unload" and not all(answers):
                        await _take_back(engine, kept)
                    raise ValueError(problem)
            unloaded = True
        finally:
            for slot, adapter in zip(occupied, kept, strict=False) if not unloaded else ():
                settings.slots[slot] = adapter
    logger.info("Unloaded the DSO adapter %s", body["name"])
    return {"adapters": sorted(settings.adapters)}


async def _take_back(engine: Any, kept: list[Adapter | None]) -> None:
    """Have the engines that unloaded an adapter load it again, so that all serve the same."""
    answers = await _call_all(engine, "dso_load", [adapter.to_json() for adapter in kept if adapter is not None])
    lost = [answer for answer in answers if answer and "already" not in answer]
    if lost:
        logger.error("The engines no longer serve the same adapters, start the server again: %s", lost[0])


def _lock(engine: Any) -> asyncio.Lock:
    """One change at a time."""
    processor = engine.input_processor
    if not hasattr(processor, "dso_lock"):
        processor.dso_lock = asyncio.Lock()
    lock: asyncio.Lock = processor.dso_lock
    return lock


async def _call_all(engine: Any, method: str, argument: Any) -> list[str | None]:
    answers: list[str | None] = await engine.engine_core.call_utility_all_async(method, argument)
    return answers
