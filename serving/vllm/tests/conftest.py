"""Engines for the tests, one at a time, and the references that the package itself has generated."""

import gc
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest


os.environ.update(
    OMP_NUM_THREADS="1",
    VLLM_CPU_OMP_THREADS_BIND="nobind",
    VLLM_NO_USAGE_STATS="1",
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    TOKENIZERS_PARALLELISM="false",
)
os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")

# A log-probability of the package's own generation may differ by this much: other kernels, float32.
TOLERANCE = 2e-4


@pytest.fixture(scope="session")
def references() -> dict:
    folder = os.environ.get("DSO_REFERENCES")
    path = Path(folder or "") / "references.json"
    if not folder or not path.is_file():
        pytest.skip("set DSO_REFERENCES to the folder that make_references.py has filled")
    return json.loads(path.read_text())


@contextmanager
def engine(model: str, dso: dict | None = None, **arguments):
    """An engine in this process; it is gone afterwards."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    options = {
        "skip_tokenizer_init": True,
        "dtype": "float32",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_batched_tokens": 2048,
        "max_num_seqs": 96,
        "kv_cache_memory_bytes": 2**26,
        "disable_log_stats": True,
        "seed": 0,
        "additional_config": {"dso": dso} if dso is not None else {},
    }
    llm = LLM(model, **{**options, **arguments})
    try:
        yield llm
    finally:
        llm.llm_engine.engine_core.shutdown()
        del llm
        cleanup_dist_env_and_memory()
        gc.collect()


def runner_of(llm):
    """The model runner of an engine in this process."""
    return llm.llm_engine.engine_core.engine_core.model_executor.driver_worker.worker.model_runner


@contextmanager
def serve(model: str, dso: dict | None, log: Path, *arguments: str, **environment: str):
    """The address of a server in processes of its own; they are gone afterwards."""
    import httpx

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--served-model-name", "base",
        "--dtype", "float32", "--enforce-eager", "--max-num-seqs", "64", "--block-size", "32",
        "--kv-cache-memory-bytes", str(2**28), "--host", "127.0.0.1", "--port", str(port),
        *(["--additional-config", json.dumps({"dso": dso})] if dso is not None else []), *arguments,
    ]  # fmt: skip
    with log.open("w") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=file,
            env={**os.environ, "VLLM_ENABLE_V1_MULTIPROCESSING": "1", **environment},
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(2400):
            if process.poll() is not None:
                pytest.fail(log.read_text()[-3000:])
            try:
                if httpx.get(url + "/health").status_code == 200:
                    break
            except httpx.TransportError:
                time.sleep(0.5)
        else:
            pytest.fail("the server does not answer: " + log.read_text()[-3000:])
        yield url
        assert process.poll() is None, log.read_text()[-3000:]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
        process.wait(120)


@pytest.fixture(scope="session")
def server(references, tmp_path_factory):
    """The address of a server with one adapter and three slots, and the path of its log."""
    llama = references["llama"]
    log = tmp_path_factory.mktemp("server") / "log"
    dso = {"adapters": {"fair": llama["adapters"]["fair"]}, "slots": 3}
    own = ("--max-model-len", "256", "--kv-cache-memory-bytes", str(2**26), "--enable-log-requests")
    with serve(llama["model"], dso, log, *own) as url:
        yield url, log


@pytest.fixture(scope="session")
def client(server):
    import httpx

    with httpx.Client(base_url=server[0], timeout=600) as client:
        yield client


def sampling(strengths, **more):
    """Greedy parameters at one strength (a number), strengths by adapter, or none."""
    from vllm import SamplingParams

    fields = {} if strengths is None else {"extra_args": {"dso_strength": strengths}}
    options = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, "logprobs": 1, "detokenize": False}
    return SamplingParams(**{**options, **fields, **more})


def run(llm, prompts: list[list[int] | dict], params: list, **more) -> list[tuple[list[int], list[float]]]:
    """Tokens and their log-probabilities of each request; a prompt is token ids, or what vLLM takes beside them."""
    asked = [prompt if isinstance(prompt, dict) else {"prompt_token_ids": prompt} for prompt in prompts]
    outputs = llm.generate(asked, params, use_tqdm=False, **more)
    results = []
    for output in outputs:
        tokens = list(output.outputs[0].token_ids)
        results.append((tokens, [at[t].logprob for at, t in zip(output.outputs[0].logprobs, tokens, strict=False)]))
    return results


def check(results: list[tuple[list[int], list[float]]], cases: list[dict]) -> None:
    """All tokens equal to those of the package, and all log-probabilities close to them."""
    assert len(results) == len(cases)
    wrong = [i for i, ((tokens, _), case) in enumerate(zip(results, cases, strict=False)) if tokens != case["tokens"]]
    assert not wrong, f"{len(wrong)} of {len(cases)} differ, the first at {cases[wrong[0]]['strengths']}"
    for (_, logprobs), case in zip(results, cases, strict=False):
        assert logprobs == pytest.approx(case["logprobs"], abs=TOLERANCE)


def check_cases(llm, cases: list[dict], **more) -> None:
    """All cases in one batch."""
    params = [sampling(case["strengths"] or None) for case in cases]
    check(run(llm, [case["prompt"] for case in cases], params, **more), cases)
