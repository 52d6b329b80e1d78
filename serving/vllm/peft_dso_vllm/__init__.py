"""Serve DSO adapters in stock vLLM, every request with its own steering strength."""

__version__ = "0.1.0"

__all__ = ["load_adapter", "register", "unload_adapter"]


def register() -> None:
    """
    What vLLM calls in each of its processes (entry point `vllm.general_plugins`): installs the hooks.

    Safe to call again. Without `"dso"` in `--additional-config` the hooks only refuse requests for a strength.
    """
    # Not at the top: reading the version must not cost the import of vllm.
    from . import engine, frontend, worker

    frontend.install()
    engine.install()
    worker.install()


def __getattr__(name: str) -> object:
    if name in ("load_adapter", "unload_adapter"):
        from . import slots

        return getattr(slots, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
