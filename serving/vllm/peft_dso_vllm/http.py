"""The HTTP side: carries the strength from the body of a request to its sampling parameters."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from vllm.exceptions import VLLMValidationError

from . import slots
from .params import FIELD, is_field


# The endpoints that carry a top-level field over, and those that generate nothing.
CARRYING = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")
HARMLESS = ("/tokenize", "/detokenize", "/v1/messages/count_tokens")
# Where people put what belongs at the top level: an argument of the openai package, and vLLM's own classes.
NESTED = ("extra_body", "extra_args", "sampling_params")
LARGEST_BODY = 16 * 2**20  # bytes of a JSON body that is looked through
# Where a server's application is built; not imported in a process that is no server.
APP = "vllm.entrypoints.launchers.app"


def with_fields(params: Any, request: Any) -> Any:
    """
    The sampling parameters with the top-level fields of an HTTP request, which vLLM itself ignores.

    Args:
        params (`SamplingParams`): made for this request alone.
        request (`BaseModel`): the request.

    Raises:
        VLLMValidationError: a field stands in `vllm_xargs` too.
    """
    top = {key: value for key, value in (request.model_extra or {}).items() if is_field(key)}
    if nested := _nested(request.model_extra or {}):
        raise VLLMValidationError(f"{nested[1]!r} stands in {nested[0]!r}. Put it at the top level of the request.")
    if not top:
        return params
    twice = sorted(top.keys() & (params.extra_args or {}).keys())
    if twice:
        raise VLLMValidationError(f"{twice[0]!r} stands in the request and in its vllm_xargs. Give it once.")
    params.extra_args = {**(params.extra_args or {}), **top}
    return params


def _nested(content: Mapping[str, Any]) -> tuple[str, str] | None:
    """A mapping of a request that holds a steering field, and the field."""
    for key in NESTED:
        inner = content.get(key)
        for name in inner if isinstance(inner, Mapping) else ():
            if is_field(name):
                return key, name
    return None


def _carrying(to_sampling_params: Any) -> Any:
    @functools.wraps(to_sampling_params)
    def carrying(self: Any, *args: Any, **kwargs: Any) -> Any:
        return with_fields(to_sampling_params(self, *args, **kwargs), self)

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


def _hook_openai() -> None:
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


def _hook_messages() -> None:
    """Anthropic's messages: the request's class drops unknown fields, and a chat request is made out of it."""
    if APP not in sys.modules:
        return
    from vllm.entrypoints.anthropic.protocol import AnthropicMessagesRequest
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    if AnthropicMessagesRequest.model_config.get("extra") == "allow":
        return
    AnthropicMessagesRequest.model_config = {**AnthropicMessagesRequest.model_config, "extra": "allow"}
    AnthropicMessagesRequest.model_rebuild(force=True)
    build = AnthropicServingMessages._build_base_request.__func__

    @functools.wraps(build)
    def build_and_carry(cls: Any, anthropic_request: Any, openai_messages: Any) -> Any:
        request = build(cls, anthropic_request, openai_messages)
        for key, value in (anthropic_request.model_extra or {}).items():
            if is_field(key):
                setattr(request, key, value)  # an extra field of the chat request, carried on from there
        return request

    AnthropicServingMessages._build_base_request = classmethod(build_and_carry)


class RefuseDroppedFields:
    """
    ASGI middleware: a strength at the top level of a body whose endpoint would drop it is a 400.

    Args:
        app (`Callable`): the application.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "").rstrip("/")
        path = path.removeprefix(scope.get("root_path", ""))
        if scope["type"] != "http" or scope["method"] != "POST" or path in (*CARRYING, *HARMLESS, *slots.PATHS):
            await self.app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope.get("headers", ())}
        if b"json" not in headers.get(b"content-type", b"json"):  # forms and files are not looked through
            await self.app(scope, receive, send)
            return
        messages, size, more = [], 0, True
        while more:
            message = await receive()
            messages.append(message)
            size += len(message.get("body", b""))
            more = message.get("more_body", False) and message["type"] == "http.request"
            if size > LARGEST_BODY:
                await _answer(send, 413, f"{path} takes JSON of at most {LARGEST_BODY} bytes.")
                return
        key = _dropped(b"".join(message.get("body", b"") for message in messages))
        if key is not None:
            await _answer(send, 400, f"{path} would ignore {key!r}. Give the strength to {', '.join(CARRYING)}.")
            return
        waiting = iter(messages)

        async def replay() -> Any:
            return next(waiting, None) or await receive()

        await self.app(scope, replay, send)


def _dropped(body: bytes) -> str | None:
    """The first steering field at the top level of a JSON body."""
    # A backslash may spell any letter ("\u0064so_strength").
    if b"dso" not in body.lower() and b"steering_strength" not in body and b"\\u" not in body:
        return None
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    nested = _nested(content)
    return next((key for key in content if is_field(key)), nested[1] if nested else None)


async def _answer(send: Any, status: int, message: str) -> None:
    error = {"error": {"message": message, "type": "BadRequestError", "param": FIELD, "code": status}}
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(error).encode()})


def _hook_app() -> None:
    """Add the middleware and the routes to a server's application, which is built after the engine's client."""
    app_module: Any = sys.modules.get(APP)
    if app_module is None or hasattr(app_module.register_api_routers, "dso"):
        return  # no server in this process
    register = app_module.register_api_routers

    @functools.wraps(register)
    def register_and_add(args: Any, app: Any, *more: Any, **kwargs: Any) -> Any:
        result = register(args, app, *more, **kwargs)
        app.add_middleware(RefuseDroppedFields)
        _add_routes(app)
        return result

    register_and_add.dso = True  # type: ignore[attr-defined]
    app_module.register_api_routers = register_and_add


def _add_routes(app: Any) -> None:
    """The routes that load and unload an adapter; they answer 400 where the server was started without "slots"."""
    from fastapi.responses import JSONResponse

    def route(action: Callable[..., Awaitable[dict[str, Any]]]) -> Callable[..., Awaitable[Any]]:
        async def endpoint(raw_request: Any) -> Any:
            try:
                if "json" not in raw_request.headers.get("content-type", ""):
                    raise ValueError("Send the body as JSON, with the header Content-Type: application/json.")
                content = await raw_request.json()
                return JSONResponse(await action(raw_request.app.state.engine_client, content))
            except (ValueError, RecursionError) as error:  # of the body as well as of what it asks for
                detail = {"message": str(error), "type": "BadRequestError", "param": None, "code": 400}
                return JSONResponse({"error": detail}, status_code=400)

        return endpoint

    for path, action in zip(slots.PATHS, (slots.load_over_http, slots.unload_over_http), strict=False):
        app.router.add_route(path, route(action), methods=["POST"])


def install() -> None:
    """Hook the classes of the HTTP requests, and the application where this process has one."""
    _hook_openai()
    _hook_messages()
    _hook_app()
