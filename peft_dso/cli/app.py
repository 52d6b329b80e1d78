"""`peft-dso app`."""

from __future__ import annotations

import argparse
import itertools
import os
import socket
from pathlib import Path
from typing import Any, Optional

from .arguments import add_device, say


def add(commands: Any) -> None:
    """Add the command to the parser."""
    app = commands.add_parser(
        "app",
        help="turn the strength in a page of your browser",
        description="Serve a local page with a slider per adapter: answers and texts, unsteered and steered side by "
        "side, the adapter's report, and the lines that reproduce the screen. Without options: the small model and "
        "the adapter of peft-dso demo. It listens on 127.0.0.1 alone unless told otherwise, and tells nobody.",
        epilog="example: peft-dso app --model smollm2 --adapter quickstart-out/adapter",
    )
    app.add_argument("--model", help="folder or Hub name of the base model; smollm2: the quick start's")
    app.add_argument(
        "--adapter", action="append", metavar="A", help="folder or Hub name of an adapter; may be given several times"
    )
    app.add_argument("--dtype", default="float32", help="float32 (default), bfloat16, float16 or auto")
    add_device(app)
    app.add_argument("--highest", type=float, default=1.0, help="the end of the sliders, 1 by default")
    app.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 shows it to your network")
    app.add_argument("--port", type=port_number, help="port to listen on; default the first free one from 7860")
    app.add_argument("--no-browser", action="store_true", help="do not open a browser")
    app.set_defaults(run=run)


def port_number(text: str) -> int:
    """
    A port to listen on.

    Raises:
        argparse.ArgumentTypeError: the text is no number from 1 to 65535.
    """
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give a number from 1 to 65535")
    return int(text)


def check_free(host: str, port: Optional[int]) -> None:
    """
    Raises:
        OSError: the page cannot listen there.
    """
    try:
        family = socket.getaddrinfo(host, port or 0, type=socket.SOCK_STREAM)[0][0]
        socket.create_server((host, port or 0), family=family).close()
    except OSError as error:
        place = host if port is None else f"{host}:{port}"
        raise OSError(f"The page cannot listen on {place} ({error}). Choose another --host or --port.") from None


def adapter_names(adapters: list[str]) -> dict[str, str]:
    """
    A name for each adapter: the last part of its folder or Hub name, numbered where two are the same, and with
    nothing in it that a module of a model must not have in its name.

    Args:
        adapters (`list[str]`): folders or Hub names.

    Returns:
        `dict[str, str]`: folder or Hub name by adapter name.
    """
    from torch.nn import ModuleDict

    named: dict[str, str] = {}
    for adapter in adapters:
        path = Path(adapter).resolve() if os.path.isdir(adapter) else Path(adapter)
        name = path.parent.name if path.name == "adapter" and path.parent.name else path.name
        name = name.replace(".", "_") or "adapter"
        name = f"{name}-adapter" if hasattr(ModuleDict(), name) else name  # "train", "keys"
        free = (f"{name}-{number}" for number in itertools.count(2))
        named[name if name not in named else next(other for other in free if other not in named)] = adapter
    return named


def run(options: argparse.Namespace) -> int:
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported
    from ..app import build
    from ..demo.trained import demo_adapter
    from ..models import SMOLLM2, add_adapter, load_base

    if bool(options.model) != bool(options.adapter):
        missing = "--adapter" if options.model else "--model"
        raise ValueError(f"{missing} is missing: give a base model and at least one adapter, or neither for the demo.")
    adapters = adapter_names(options.adapter) if options.adapter else {"demo": str(demo_adapter())}
    check_free(options.host, options.port)
    say("Loading the model")
    base, processor = load_base(options.model or SMOLLM2, options.dtype, device=options.device)
    model: Any = base
    for name, adapter in adapters.items():
        model = add_adapter(model, adapter, name)
    page = build(model, processor, adapters=adapters, model_name=options.model or SMOLLM2, highest=options.highest)
    page.queue().launch(
        server_name=options.host, server_port=options.port, inbrowser=not options.no_browser, quiet=True,
        prevent_thread_lock=True,
    )  # fmt: skip
    say(f"The page is at {page.local_url} (Ctrl-C ends it)")
    page.block_thread()
    return 0
