"""How the page is served: to this computer alone, with nothing fetched from or sent to anywhere else."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

import gradio as gr
from starlette.middleware import Middleware


STYLE = Path(__file__).with_name("style.css")
SYSTEM_FONTS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif")
SYSTEM_MONO = ("ui-monospace", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")
# Whatever a browser is told by what Gradio ships, it may talk to this server only.
POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; connect-src 'self' data: blob:; form-action 'self'; base-uri 'self'"
)

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class _OnlyHere:
    """Adds the policy to every answer; streams pass through it untouched."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Any, send: Send) -> None:
        async def with_policy(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    (b"content-security-policy", POLICY.encode()),
                    (b"referrer-policy", b"no-referrer"),
                ]
            await send(message)

        await self._app(scope, receive, with_policy)


def _theme() -> Any:
    theme = gr.themes.Default(font=list(SYSTEM_FONTS), font_mono=list(SYSTEM_MONO), primary_hue="blue")
    # Gradio's own grey is too light to read.
    return theme.set(
        block_info_text_color="#4b5563",
        block_info_text_color_dark="#c7cdd6",
        block_label_text_color="#1f2937",
        block_label_text_color_dark="#e5e7eb",
        block_title_text_color="#1f2937",
        block_title_text_color_dark="#e5e7eb",
        body_text_color_subdued="#4b5563",
        body_text_color_subdued_dark="#c7cdd6",
    )


class Page(gr.Blocks):
    """Gradio blocks, launched as this page is meant to be: on 127.0.0.1, in its own style, without telemetry."""

    def launch(self, *args: Any, **options: Any) -> Any:
        """
        Serve the page.

        Args:
            *args, **options: those of `gradio.Blocks.launch`. Unless told otherwise it listens on 127.0.0.1, makes no
                public link, uses the fonts of the reader's system, and tells browsers to talk to nobody else.

        Returns:
            What `gradio.Blocks.launch` returns.
        """
        app_kwargs = dict(options.pop("app_kwargs", None) or {})
        app_kwargs["middleware"] = [Middleware(_OnlyHere), *app_kwargs.get("middleware", [])]
        defaults: dict[str, Any] = {
            "share": False,
            "theme": _theme(),
            "css": STYLE.read_text(encoding="utf-8"),
            # A screen reader says what a slider has done.
            "js": "() => document.getElementById('dso-answers')?.setAttribute('aria-live', 'polite')",
            "footer_links": [],
            "ssr_mode": False,
            "show_error": False,
            "max_file_size": "20mb",
        }
        return super().launch(*args, **{**defaults, **options}, app_kwargs=app_kwargs)
