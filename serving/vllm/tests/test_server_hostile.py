"""Requests that mean harm: each is a 400 that says what to do, and the server goes on answering rightly."""

import asyncio
import json
import shutil
from pathlib import Path

import httpx
import pytest
from test_features import changed


BODY = {"model": "base", "prompt": [5, 6, 7], "max_tokens": 6, "temperature": 0, "ignore_eos": True}
TOKENS = {"return_token_ids": True, "dso_strength": 0.4}


@pytest.fixture(autouse=True)
def lives(client):
    """The same answer before and after, and the same adapters."""
    before = client.post("/v1/completions", json=BODY | TOKENS).json()["choices"][0]["token_ids"]
    yield
    assert client.post("/v1/completions", json=BODY | TOKENS).json()["choices"][0]["token_ids"] == before
    none = client.post("/v1/completions", json=BODY | {"dso_strength": {"nobody": 1}}).json()
    assert "There is no adapter 'nobody'. Loaded: fair." in none["error"]["message"]


def nested(depth: int) -> str:
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/load_dso_adapter", "/v1/embeddings"])
@pytest.mark.parametrize(
    "value",
    ['"' + "x" * 10**6 + '"', nested(50), nested(10**5), "9" * 60, "9" * 5000, "-1e999", '{"fair": {"fair": 1}}'],
    ids=["long text", "nested", "deeply nested", "60 digits", "5000 digits", "overflow", "mapping of mappings"],
)
def test_values_of_any_size_and_depth(client, path, value):
    content = json.dumps(BODY | {"dso_strength": "HERE"}).replace('"HERE"', value)
    response = client.post(path, content=content, headers={"content-type": "application/json"})
    # 404 where an endpoint does not exist here; vLLM itself cannot read some of them.
    assert 400 <= response.status_code < 500 or "dso" not in response.text.lower()
    assert response.status_code != 200 and len(response.text) < 5000


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"name": 5}', nested(10**5).encode()])
def test_bodies_that_are_not_what_the_adapter_routes_take(client, content):
    for path in ("/v1/load_dso_adapter", "/v1/unload_dso_adapter"):
        response = client.post(path, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text
        assert response.json()["error"]["message"]


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"path": "/etc/../etc"}, "holds no adapter_config.json"),
        ({"path": "/dev/zero"}, "is no folder here"),
        ({"path": 5}, "must be a folder, a repository"),
        ({"path": "FAIR", "subfolder": "../fair"}, "must lie inside"),
        ({"path": "FAIR", "name": 'a"} 1\n'}, "may hold letters, digits"),
        ({"path": "FAIR", "name": "fair:published"}, "may hold letters, digits"),
        ({"path": "FAIR", "name": 5}, "must be text"),
        ({"path": "FAIR", "file": "x"}, "The body must be"),
        ({"path": "OTHER BASE"}, "made for another base model"),
        ({"path": "LORA"}, "of the kind 'LORA'"),
        ({"path": "PICKLED"}, "a pickle, which is never read"),
        ({"path": "WIDER"}, "It was made for another base model"),
    ],
)
def test_adapters_that_cannot_be_loaded(client, references, tmp_path, fields, message):
    import torch

    fair = references["llama"]["adapters"]["fair"]
    slope = "base_model.model.model.layers.0.input_layernorm.dso_affine.slope"
    pickled = Path(changed(fair, tmp_path / "pickled"))
    shutil.move(pickled / "adapter_model.safetensors", pickled / "adapter_model.bin")
    paths = {
        "FAIR": fair,
        "OTHER BASE": references["qwen3"]["adapters"]["fair"],
        "LORA": references["llama"]["lora"],
        "PICKLED": str(pickled),
        "WIDER": changed(fair, tmp_path / "wider", lambda tensors: {**tensors, slope: torch.ones(65)}),
    }
    body = {"name": "bad", **fields, "path": paths.get(fields["path"], fields["path"])}
    response = client.post("/v1/load_dso_adapter", json=body)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]


def test_strengths_that_would_overflow_are_refused_and_the_largest_harm_nobody(server, client):
    """What a request leaves in the cache's blocks is no number of another's, whatever its strength."""
    bodies = [BODY | {"prompt": [5 + i] * 9, "return_token_ids": True, "dso_strength": 0.4} for i in range(4)]
    alone = [client.post("/v1/completions", json=body).json()["choices"][0]["token_ids"] for body in bodies]
    huge = [{**bodies[0], "dso_strength": w, "temperature": 1} for w in (10, -10, 10.001, 1e4, 3e38, -3e38)]

    async def together() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=server[0], timeout=600) as one:
            return await asyncio.gather(*(one.post("/v1/completions", json=body) for body in [*bodies, *huge]))

    for _ in range(3):
        answers = asyncio.run(together())
        assert [answer.json()["choices"][0]["token_ids"] for answer in answers[:4]] == alone
        assert [answer.status_code for answer in answers[4:]] == [200, 200, 400, 400, 400, 400]
        assert "from -10 to 10" in answers[-1].text


def test_loading_and_unloading_while_requests_run(server, references):
    """Each request is answered rightly, or says that there is no such adapter."""
    other = references["llama"]["adapters"]["other"]
    cases = [case for case in references["llama"]["mixed"] if case["strengths"]["other"]]

    async def scenario() -> list[int]:
        async with httpx.AsyncClient(base_url=server[0], timeout=600) as one:
            running, statuses = True, []

            async def turn() -> None:
                while running:
                    await one.post("/v1/load_dso_adapter", json={"name": "other", "path": other})
                    await one.post("/v1/unload_dso_adapter", json={"name": "other"})

            async def ask(case: dict) -> None:
                body = BODY | {"prompt": case["prompt"], "max_tokens": 24, "return_token_ids": True}
                response = await one.post("/v1/completions", json=body | {"dso_strength": case["strengths"]})
                statuses.append(response.status_code)
                if response.status_code == 200:
                    assert response.json()["choices"][0]["token_ids"] == case["tokens"]

            turning = asyncio.create_task(turn())
            for _ in range(4):
                await asyncio.gather(*(ask(case) for case in cases))
            running = False
            await turning
            for _ in range(100):
                answer = await one.post("/v1/unload_dso_adapter", json={"name": "other"})
                if answer.status_code == 200 or "There is no adapter" in answer.text:
                    break
                await asyncio.sleep(0.1)
            return statuses

    assert set(asyncio.run(scenario())) <= {200, 400}
