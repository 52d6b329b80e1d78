"""A local web page with a slider per adapter, made with Gradio (extra `app`)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .page import build

__all__ = ["build"]


def __getattr__(name: str) -> Any:
    if name != "build":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from .page import build
    except ModuleNotFoundError as error:
        if error.name in ("gradio", "starlette"):
            raise ImportError("The page needs Gradio. Install it with: pip install 'peft_dso[app]'") from error
        raise
    return build
