"""The OpenAI server in a process of its own, through real clients."""

import asyncio
import json

import httpx
import openai
import pytest
from conftest import TOLERANCE


def completion(**fields) -> dict:
    return {"model": "base", "prompt": [5, 6, 7], "max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}


def chat(*turns: str, **fields) -> dict:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    return {"model": "base", "messages": messages, "max_tokens": 12, "temperature": 0, **fields}


def numbers(text: str) -> list[int]:
    """The token ids of a text: the tokenizer's words are "t" and the number."""
    return [int(word[1:]) for word in text.split()]


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    body = response.json()
    if "output" in body:
        return body["output"][0]["content"][0]["text"]
    if "choices" not in body:
        return body["content"][0]["text"]
    choice = body["choices"][0]
    return choice["text"] if "text" in choice else choice["message"]["content"]


async def completions(url: str, bodies: list[dict]) -> list[dict]:
    """All at once."""
    async with httpx.AsyncClient(base_url=url, timeout=300) as client:
        responses = await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))
    return [response.json() for response in responses]


def test_all_strengths_at_once_equal_those_of_the_package(server, references):
    cases = references["llama"]["cases"]
    spellings = (
        lambda w: {"dso_strength": w},
        lambda w: {"dso_strength": {"fair": w}},
        lambda w: {"vllm_xargs": {"dso_strength": w}},
        lambda w: {"vllm_xargs": {"dso_strength:fair": w}},
    )
    bodies = [
        completion(prompt=c["prompt"], max_tokens=24, logprobs=1, return_token_ids=True, **spellings[i % 4](w))
        for i, c in enumerate(cases)
        for w in [c["strengths"]["fair"]]
    ]
    for answer, case in zip(asyncio.run(completions(server[0], bodies)), cases, strict=False):
        (choice,) = answer["choices"]
        assert choice["token_ids"] == case["tokens"], case["strengths"]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(case["logprobs"], abs=TOLERANCE)


def test_chat_responses_and_messages_are_steered_alike(client):
    fields = {"dso_strength": 0.7}
    expected = text_of(
        client.post("/v1/completions", json=completion(prompt="t4 t7 t8 t9 t5", ignore_eos=False) | fields)
    )
    base = text_of(client.post("/v1/chat/completions", json=chat("t7 t8 t9", dso_strength=0)))
    assert base != expected
    body = chat("t7 t8 t9")
    responses = {"model": "base", "input": "t7 t8 t9", "max_output_tokens": 12, "temperature": 0}
    for where in (fields, {"vllm_xargs": fields}, {"vllm_xargs": {"dso_strength:fair": 0.7}}):
        assert text_of(client.post("/v1/chat/completions", json=body | where)) == expected
        assert text_of(client.post("/v1/responses", json=responses | where)) == expected
        assert text_of(client.post("/v1/messages", json=body | where)) == expected


def test_streams_give_the_same_text(server):
    client = openai.OpenAI(base_url=server[0] + "/v1", api_key="none")
    body = chat("t7 t8 t9")
    whole = client.chat.completions.create(**body, extra_body={"dso_strength": 0.4})
    parts = client.chat.completions.create(**body, stream=True, extra_body={"dso_strength": 0.4})
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert text == whole.choices[0].message.content
    base = client.chat.completions.create(**body, extra_body={"dso_strength": 0.0})
    assert text != base.choices[0].message.content


def test_second_turn_of_a_chat_is_steered(client):
    """Its prompt's KV comes from the first turn; the same text in one completion at that strength says the same."""
    long = " ".join(f"t{7 + i % 100}" for i in range(70))
    first = text_of(client.post("/v1/chat/completions", json=chat(long, dso_strength=0.4)))
    second = client.post("/v1/chat/completions", json=chat(long, first, "t9 t10", dso_strength=0.4))
    prompt = f"t4 {long} t5 {first} t4 t9 t10 t5"
    salted = completion(prompt=prompt, ignore_eos=False, dso_strength=0.4, cache_salt="apart")
    assert text_of(second) == text_of(client.post("/v1/completions", json=salted))
    assert text_of(second) != text_of(client.post("/v1/completions", json={**salted, "dso_strength": 0}))


def test_without_the_field_the_published_strength_applies(client):
    published = text_of(client.post("/v1/completions", json=completion(dso_strength=1.0)))
    assert text_of(client.post("/v1/completions", json=completion())) == published


BAD = [
    ({"dso_strength": "0.4"}, "must be a number such as 0.4"),
    ({"dso_strength": True}, "must be a number"),
    ({"dso_strength": None}, "must be a number"),
    ({"dso_strength": [0.4]}, "must be a number"),
    ({"dso_strength": 1e39}, "must be from -10 to 10"),
    ({"dso_strength": {"fear": 0.4}}, "There is no adapter 'fear'. Loaded: fair"),
    ({"dso_strenght": 0.4}, "Unknown field 'dso_strenght'"),
    ({"steering_strength": 0.4}, "Unknown field 'steering_strength'"),
    ({"vllm_xargs": {"dso_strength": "0.4"}}, "must be a number"),
    ({"vllm_xargs": {"dso_strength:fear": 0.4}}, "There is no adapter 'fear'"),
    ({"vllm_xargs": {"dso_strength": 0.4}, "dso_strength": 0.4}, "Give it once"),
]


@pytest.mark.parametrize("fields, message", BAD)
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"])
def test_bad_fields_are_a_400_that_names_the_remedy(client, path, fields, message):
    body = {"model": "base", "input": "t7"} if path == "/v1/responses" else chat("t7")
    body = completion() if path == "/v1/completions" else body
    response = client.post(path, json=body | fields)
    assert response.status_code == 400, response.text
    assert message in response.json()["error"]["message"]


def test_nan_and_infinity_are_a_400(client):
    for value in ("NaN", "Infinity", "-Infinity"):
        content = json.dumps(completion(dso_strength=0.123)).replace("0.123", value)
        response = client.post("/v1/completions", content=content, headers={"content-type": "application/json"})
        assert response.status_code == 400, response.text


def test_beam_search_at_a_strength_is_a_400(client):
    for path, body in (("/v1/completions", completion()), ("/v1/chat/completions", chat("t7"))):
        body = body | {"use_beam_search": True, "n": 2}
        response = client.post(path, json=body | {"dso_strength": 0.4})
        assert response.status_code == 400
        assert "not possible with beam search" in response.json()["error"]["message"]


def test_an_endpoint_that_would_drop_the_field_is_a_400(client):
    body = {"model": "base", "token_ids": [5, 6, 7], "sampling_params": {"max_tokens": 4, "temperature": 0}}
    response = client.post("/inference/v1/generate", json=body | {"dso_strength": 0.4})
    assert response.status_code == 400
    assert "would ignore 'dso_strength'" in response.json()["error"]["message"]
    assert client.post("/inference/v1/generate", json=body).status_code != 400
    assert client.post("/tokenize", json={"model": "base", "prompt": "t7", "dso_strength": 1}).status_code == 200


def metric(client, name: str, adapter: str) -> float:
    start = f'peft_dso:{name}_total{{adapter="{adapter}"}} '
    lines = [line for line in client.get("/metrics").text.splitlines() if line.startswith(start)]
    return float(lines[0][len(start) :]) if lines else 0.0


def test_metrics_and_the_log_tell_the_strength(server, client):
    names = ("steered_requests", "steered_prompt_tokens", "steered_generation_tokens")
    before = [metric(client, name, "fair") for name in names]
    text_of(client.post("/v1/completions", json=completion(dso_strength=0.123)))
    text_of(client.post("/v1/completions", json=completion(dso_strength=0)))
    after = [metric(client, name, "fair") for name in names]
    assert [b - a for a, b in zip(before, after, strict=False)] == [1, 3, 12]
    log = server[1].read_text()
    assert "'dso_strength': 0.123" in log
    assert log.count("DSO steers 8 norms on 1 worker: fair") == 1


def test_adapters_are_loaded_and_unloaded_while_the_server_runs(client, references):
    adapters = references["llama"]["adapters"]

    def post(where, **body):
        return client.post(where, json=body)

    mixed = [case for case in references["llama"]["mixed"] if case["strengths"]["other"]][:6]
    assert post("/v1/load_dso_adapter", name="other", path=adapters["other"]).json() == {"adapters": ["fair", "other"]}
    for case in mixed:
        body = completion(prompt=case["prompt"], max_tokens=24, return_token_ids=True, dso_strength=case["strengths"])
        assert client.post("/v1/completions", json=body).json()["choices"][0]["token_ids"] == case["tokens"]
    refused = [
        (post("/v1/load_dso_adapter", name="other", path=adapters["slopes"]), "already"),
        (post("/v1/load_dso_adapter", name="layered", path=adapters["layered"]), "2 slots are needed and 1 of 3"),
        (post("/v1/load_dso_adapter", name="third", path=references["qwen3"]["adapters"]["fair"]), "another base"),
        (post("/v1/load_dso_adapter", name="third", path="/nowhere"), "is no folder here"),
        (post("/v1/load_dso_adapter", name="third"), "The body must be"),
        (post("/v1/unload_dso_adapter", name="third"), "There is no adapter 'third'"),
        (post("/v1/unload_dso_adapter", name="fair"), "cannot be unloaded"),
    ]
    for response, message in refused:
        assert response.status_code == 400
        assert message in response.json()["error"]["message"]
    assert post("/v1/unload_dso_adapter", name="other").json() == {"adapters": ["fair"]}
    response = client.post("/v1/completions", json=completion(dso_strength={"other": 1}))
    assert response.status_code == 400
    # Another adapter in the same slot, under the same name: its vectors and a KV cache of its own.
    long = [7 + i % 100 for i in range(70)]
    one = {"prompt": long, "dso_strength": {"other": 1.0}}
    post("/v1/load_dso_adapter", name="other", path=adapters["other"])
    first = text_of(client.post("/v1/completions", json=completion(**one)))
    post("/v1/unload_dso_adapter", name="other")
    post("/v1/load_dso_adapter", name="other", path=adapters["slopes"])
    second = text_of(client.post("/v1/completions", json=completion(**one)))
    assert first != second
    assert second == text_of(client.post("/v1/completions", json=completion(**one, cache_salt="apart")))
    assert post("/v1/unload_dso_adapter", name="other").status_code == 200


def test_an_adapter_in_use_is_not_unloaded(server, references):
    path = references["llama"]["adapters"]["other"]

    async def scenario() -> tuple[httpx.Response, httpx.Response, httpx.Response]:
        async with httpx.AsyncClient(base_url=server[0], timeout=120) as client:
            await client.post("/v1/load_dso_adapter", json={"name": "other", "path": path})
            body = completion(dso_strength={"other": 1.0}, max_tokens=200)
            running = asyncio.create_task(client.post("/v1/completions", json=body))
            while not (await client.get("/metrics")).text.count('steered_requests_total{adapter="other"}'):
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.05)
            early = await client.post("/v1/unload_dso_adapter", json={"name": "other"})
            done = await running
            late = await client.post("/v1/unload_dso_adapter", json={"name": "other"})
            return early, done, late

    early, done, late = asyncio.run(scenario())
    assert done.status_code == 200 and len(numbers(text_of(done))) > 100
    assert late.status_code == 200
    assert early.status_code == 400 and "running with 'other'" in early.json()["error"]["message"]
