"""What needs no engine: strengths out of requests, salts, settings."""

import asyncio
import hashlib
import json
import struct
import subprocess
import sys

import pytest
from peft_dso_vllm.adapters import file_sha256
from peft_dso_vllm.params import StrengthError, as_strength, cache_salt, requested
from peft_dso_vllm.settings import Settings, pinned


def float32(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


@pytest.mark.parametrize(
    "fields, expected",
    [
        ({}, None),
        ({"ngram_size": 3}, None),
        ({"dso_strength": 0.4}, {"fair": float32(0.4)}),
        ({"dso_strength": 1}, {"fair": 1.0}),
        ({"dso_strength": 0}, {}),
        ({"dso_strength": -0.0}, {}),
        ({"dso_strength": {}}, {}),
        ({"dso_strength": {"other": -0.5, "fair": 0}}, {"other": -0.5}),
        ({"dso_strength:other": 2, "dso_strength:fair": 0.25}, {"other": 2.0, "fair": 0.25}),
    ],
)
def test_strengths_of_a_request(fields, expected):
    assert requested(fields, {"fair", "other"}, "fair") == expected


def test_a_number_needs_an_adapter_that_it_can_mean():
    with pytest.raises(StrengthError, match="Name the one that is meant"):
        requested({"dso_strength": 0.4}, {"fair", "other"}, None)
    assert requested({"dso_strength": 0}, {"fair", "other"}, None) == {}  # 0 is the base, whichever is meant


def test_a_tiny_strength_that_float32_does_not_know_is_0():
    assert as_strength(1e-60) == 0.0
    assert str(as_strength(-1e-60)) == "0.0"


def test_an_error_shows_a_value_of_any_size_and_depth():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, "x" * 10**7, {"fair": "x" * 10**7}, {"x" * 10**7: 1}, 10**5000, float("1e300"), b"0.4", 1j):
        with pytest.raises(StrengthError) as caught:
            requested({"dso_strength": value}, {"fair"}, "fair")
        assert 20 < len(str(caught.value)) < 400
    with pytest.raises(StrengthError) as caught:
        requested({"dso" + "x" * 10**7: 1}, {"fair"}, "fair")
    assert len(str(caught.value)) < 400 and len(caught.value.parameter) < 400


def test_salts_tell_steerings_apart_and_nothing_else():
    identities = {"fair": "a" * 64, "again": "a" * 64, "other": "b" * 64}
    salts = {
        cache_salt(strengths, identities, salt)
        for strengths in ({"fair": 0.4}, {"fair": 0.5}, {"other": 0.4}, {"fair": 0.4, "other": 0.4})
        for salt in (None, "mine", "yours")
    }
    assert len(salts) == 12
    assert cache_salt({"fair": 0.4}, identities, None) == cache_salt({"again": 0.4}, identities, None)
    assert cache_salt({"fair": 0.4, "other": 1}, identities, None) == cache_salt(
        {"other": 1.0, "fair": 0.4, "again": 0}, identities, None
    )
    assert cache_salt({}, identities, None) is None
    assert cache_salt({"fair": 0.0}, identities, "mine") == "mine"


@pytest.fixture
def adapter(tmp_path):
    """A folder whose weights are never parsed here."""

    def make(name: str, strength) -> str:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "adapter_model.safetensors").write_bytes(name.encode())
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "DSO", "steering_strength": strength}))
        return str(folder)

    return make


def settings(raw) -> Settings:
    from peft_dso_vllm.settings import settings_of

    class Config:
        additional_config = json.loads(json.dumps({"dso": pinned(raw)}))  # as it reaches another process

    return settings_of(Config)


def test_the_published_strength_is_the_default(adapter):
    found = settings({"adapters": {"fair": adapter("fair", 0.25)}})
    assert found.strengths(None) == {"fair": 0.25}
    assert found.row({"dso_strength": 0.5}) == [0.5]
    assert found.row({"dso_strength": 0}) == [0.0]


def test_a_default_of_the_server_comes_before_the_published_one(adapter):
    adapters = {"fair": adapter("fair", 0.25), "other": adapter("other", 1.0)}
    found = settings({"adapters": adapters, "default": {"other": 0.5}, "slots": 3})
    assert found.row(None) == [0.0, 0.5, 0.0]
    assert found.row({"dso_strength": 0.125}) == [0.0, 0.125, 0.0]
    assert settings({"adapters": adapters, "default": {}}).row(None) == [0.0, 0.0]


def test_strengths_by_layer_take_a_slot_of_their_own(adapter):
    found = settings({"adapters": {"fair": adapter("fair", {"layers.0": 0.5})}})
    assert found.row(None) == [0.0, 1.0]
    assert found.row({"dso_strength": 0.5}) == [0.5, 0.0]
    salts = [found.salt(found.strengths(fields), None) for fields in (None, {"dso_strength": 1})]
    assert salts[0] != salts[1]


def test_a_file_that_changes_after_it_was_pinned_is_refused(adapter):
    folder = adapter("fair", 1.0)
    raw = pinned({"adapters": {"fair": folder}})
    (entry,) = raw["slots"]
    assert entry["sha256"] == hashlib.sha256(b"fair").hexdigest() == file_sha256(f"{folder}/adapter_model.safetensors")
    from peft_dso_vllm.adapters import Adapter, read_vectors

    with open(f"{folder}/adapter_model.safetensors", "ab") as file:
        file.write(b"!")
    with pytest.raises(ValueError, match="changed since the server was started"):
        read_vectors(Adapter(**entry))


@pytest.mark.parametrize(
    "path, body, passed",
    [
        ("/v1/embeddings", b'{"input": "dso_strength", "n": 1}', True),
        ("/v1/embeddings", b"dso_strength is no JSON", True),
        ("/v1/embeddings", b'{"input": "x", "dso_strength": 1}', False),
        ("/v1/embeddings/", b'{"steering_strength": 1}', False),
        ("/v1/embeddings", rb'{"\u0064so_strength": 1}', False),
        ("/v1/embeddings", b'{"dso_strength": ' + b"[" * 10**5, True),
        ("/inference/v1/generate", b'{"sampling_params": {"dso_strength": 1}}', False),
        ("/v1/embeddings", b'{"input": {"dso_strength": 1}}', True),
        ("/v1/chat/completions", b'{"dso_strength": 1}', True),
        ("/tokenize", b'{"dso_strength": 1}', True),
    ],
)
def test_the_middleware_passes_a_body_on_as_it_came_or_answers_400(path, body, passed):
    from peft_dso_vllm.http import RefuseDroppedFields

    chunks = [body[:10], body[10:]]
    incoming = [
        {"type": "http.request", "body": chunk, "more_body": more}
        for chunk, more in zip(chunks, (True, False), strict=False)
    ]
    seen, sent, waiting = [], [], iter(incoming)

    async def app(scope, receive, send):
        while not seen or seen[-1]["more_body"]:
            seen.append(await receive())

    async def receive():
        return next(waiting)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "root_path": ""}
    asyncio.run(RefuseDroppedFields(app)(scope, receive, send))
    assert seen == (incoming if passed else [])
    assert [message.get("status") for message in sent] == ([] if passed else [400, None])


@pytest.mark.parametrize(
    "kind, size, status", [(b"multipart/form-data", 2**25, None), (b"application/json", 2**25, 413)]
)
def test_the_middleware_holds_no_endless_body(kind, size, status):
    from peft_dso_vllm.http import RefuseDroppedFields

    taken, sent = [], []

    async def app(scope, receive, send):
        taken.append(await receive())

    async def receive():
        return {"type": "http.request", "body": b" " * 2**20, "more_body": True}

    async def send(message):
        sent.append(message.get("status"))

    scope = {"type": "http", "method": "POST", "path": "/nowhere", "headers": [(b"Content-Type", kind)]}
    asyncio.run(RefuseDroppedFields(app)(scope, receive, send))
    assert len(taken) == (status is None) and sent[:1] == ([status] if status else [])


def test_a_field_where_the_openai_package_has_it_is_refused():
    from types import SimpleNamespace

    from peft_dso_vllm.http import with_fields
    from vllm import SamplingParams
    from vllm.exceptions import VLLMValidationError

    request = SimpleNamespace(model_extra={"extra_body": {"dso_strength": 0.4}})
    with pytest.raises(VLLMValidationError, match="top level"):
        with_fields(SamplingParams(), request)


def test_a_request_past_the_input_processor_is_not_counted_by_letters():
    from types import SimpleNamespace

    from peft_dso_vllm.metrics import _steered

    for value, names in ((0.4, ()), ("fair", ()), ({"fair": 0.4}, ("fair",))):
        assert _steered(SimpleNamespace(sampling_params=SimpleNamespace(extra_args={"dso_strength": value}))) == names


def test_clients_change_adapters_where_slots_were_given_only(adapter):
    from types import SimpleNamespace

    from peft_dso_vllm.slots import load_over_http, unload_over_http

    folder = adapter("fair", 1.0)
    for more, allowed in (({}, False), ({"slots": 1}, True)):
        found = settings({"adapters": {"fair": folder}, "default": {}, **more})
        assert found.changeable == allowed
        parallel = SimpleNamespace(_api_process_count=1)
        engine = SimpleNamespace(
            input_processor=SimpleNamespace(dso=found), vllm_config=SimpleNamespace(parallel_config=parallel)
        )
        for call in (load_over_http, unload_over_http):
            with pytest.raises(ValueError, match="The body must be" if allowed else 'started with "slots"'):
                asyncio.run(call(engine, {}))


def test_a_copy_of_the_settings_keeps_what_was_loaded(adapter):
    found = settings({"adapters": {"fair": adapter("fair", 1.0)}})
    before = found.copy()
    found.slots[0] = None
    assert before.identities({"fair": 1.0}) and not found.identities({"fair": 1.0})


def test_refusing_engines_keep_an_adapter_that_is_in_use(adapter):
    """Two engines, one busy: the idle one does not unload, and the front end goes on serving."""
    from types import SimpleNamespace

    from peft_dso_vllm.slots import unload_over_http

    found = settings({"adapters": {"fair": adapter("fair", 1.0)}, "default": {}, "slots": 1})
    calls = []

    class Core:
        async def call_utility_all_async(self, method, argument):
            calls.append(method)
            return [None, "1 requests are running with 'fair'."]

    engine = SimpleNamespace(
        input_processor=SimpleNamespace(dso=found), engine_core=Core(),
        vllm_config=SimpleNamespace(parallel_config=SimpleNamespace(_api_process_count=1)),
    )  # fmt: skip
    with pytest.raises(ValueError, match="are running"):
        asyncio.run(unload_over_http(engine, {"name": "fair"}))
    assert calls == ["dso_in_use"] and list(found.adapters) == ["fair"]


@pytest.mark.parametrize("name, size", [("adapter_config.json", 2**21), ("adapter_model.safetensors", 2**29)])
def test_files_that_are_no_adapters_are_not_read(adapter, name, size):
    folder = adapter("fair", 1.0)
    with open(f"{folder}/{name}", "r+b") as file:
        file.truncate(size)
    with pytest.raises(ValueError, match=f"{name} in .* has {size} bytes"):
        pinned({"adapters": {"fair": folder}})


def test_it_needs_neither_peft_nor_the_package():
    code = (
        "import sys, peft_dso_vllm; peft_dso_vllm.register(); import vllm.entrypoints.llm;"
        "print([m for m in ('peft', 'trl', 'peft_dso') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
