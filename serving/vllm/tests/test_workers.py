"""Engines whose model is spread over two workers, or served twice."""

import asyncio

import httpx
import pytest
from conftest import check_cases, engine, serve
from peft_dso_vllm import load_adapter, unload_adapter


@pytest.mark.parametrize("parallel", [{"pipeline_parallel_size": 2}, {"tensor_parallel_size": 2}], ids=str)
def test_two_workers(references, monkeypatch, parallel):
    """Every site is on one of them (pipeline) or on both (tensor); what is loaded later reaches both."""
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "1")
    llama = references["llama"]
    dso = {"adapters": {"fair": llama["adapters"]["fair"]}, "slots": 2}
    with engine(llama["model"], dso, distributed_executor_backend="mp", **parallel) as llm:
        check_cases(llm, llama["cases"])
        load_adapter(llm, "other", llama["adapters"]["other"])
        check_cases(llm, llama["mixed"])
        unload_adapter(llm, "other")
        with pytest.raises(ValueError, match="made for another base model"):
            load_adapter(llm, "other", references["qwen3"]["adapters"]["fair"])


def test_two_engines_behind_one_server(references, tmp_path):
    """Data parallel: requests go to either; both load and unload what is loaded and unloaded."""
    llama = references["llama"]
    dso = {"adapters": {"fair": llama["adapters"]["fair"]}, "slots": 2}
    cases = [*llama["cases"][:28], *llama["mixed"]]

    async def ask(url: str) -> list[httpx.Response]:
        fields = {"model": "base", "max_tokens": 24, "temperature": 0, "ignore_eos": True, "return_token_ids": True}
        async with httpx.AsyncClient(base_url=url, timeout=1800) as client:
            bodies = [{**fields, "prompt": case["prompt"], "dso_strength": case["strengths"]} for case in cases]
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for body in bodies))

    with serve(llama["model"], dso, tmp_path / "log", "--data-parallel-size", "2", "--max-model-len", "256") as url:
        body = {"name": "other", "path": llama["adapters"]["other"]}
        assert httpx.post(url + "/v1/load_dso_adapter", json=body, timeout=1800).json() == {
            "adapters": ["fair", "other"]
        }
        for answer, case in zip(asyncio.run(ask(url)), cases, strict=True):
            assert answer.json()["choices"][0]["token_ids"] == case["tokens"], case["strengths"]
        counts = [
            float(line.rsplit(" ", 1)[1])
            for line in httpx.get(url + "/metrics").text.splitlines()
            if line.startswith("vllm:request_success_total{") and 'finished_reason="length"' in line
        ]
        assert len(counts) == 2 and min(counts) > 0, counts  # both engines have answered
        assert httpx.post(url + "/v1/unload_dso_adapter", json={"name": "other"}, timeout=1800).status_code == 200
    assert (tmp_path / "log").read_text().count("DSO steers 8 norms on 1 worker: fair") == 2
