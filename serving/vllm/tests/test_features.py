"""vLLM's features one engine each, and the refusals at the start."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import check, check_cases, engine, run, runner_of, sampling


@pytest.fixture
def fair(references):
    return {"adapters": {"fair": references["llama"]["adapters"]["fair"]}}


def test_chunked_prefill_and_preemption(references, fair):
    """64 tokens a step, so that prompts are cut; six blocks of KV cache, so that requests are preempted."""
    llama = references["llama"]
    options = {"max_num_batched_tokens": 64, "max_num_seqs": 32, "block_size": 32, "num_gpu_blocks_override": 9}
    with engine(llama["model"], fair, disable_log_stats=False, **options) as llm:
        check_cases(llm, [*llama["cases"], *llama["long"]])
        counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
        assert counters["vllm:num_preemptions"] > 0


def test_lora_beside_the_steering(references, fair):
    from vllm.lora.request import LoRARequest

    llama = references["llama"]
    with engine(llama["model"], fair, enable_lora=True, max_lora_rank=8) as llm:
        check_cases(llm, llama["with_lora"], lora_request=LoRARequest("lora", 1, llama["lora"]))
        check_cases(llm, llama["cases"][:14])


def test_strengths_by_layer_are_what_a_request_without_the_field_gets(references):
    llama = references["llama"]
    with engine(llama["model"], {"adapters": {"layered": llama["adapters"]["layered"]}}) as llm:
        check_cases(llm, llama["layered"])


def test_compiled(references, fair, tmp_path, monkeypatch):
    monkeypatch.setenv("VLLM_CACHE_ROOT", str(tmp_path))
    llama = references["llama"]
    with engine(llama["model"], fair, enforce_eager=False) as llm:
        check_cases(llm, llama["cases"])
        assert [norm.dso_eager for norm in steered_norms(llm)] == [None] * 8  # a graph must not ask


def test_nothing_is_computed_while_nobody_is_steered(references, fair):
    """Where no graph is made; what is steered next is steered in full."""
    llama = references["llama"]
    base = [case for case in llama["cases"] if case["strengths"]["fair"] == 0]
    with engine(llama["model"], fair) as llm:
        norms = steered_norms(llm)
        for _ in range(2):
            check_cases(llm, llama["cases"])
            kept = [norm.dso_slopes for norm in norms]
            for norm in norms:
                norm.dso_slopes = None
            check_cases(llm, base)
            for norm, slopes in zip(norms, kept, strict=True):
                norm.dso_slopes = slopes


def steered_norms(llm) -> list:
    return [module for module in runner_of(llm).get_model().modules() if hasattr(module, "dso_slopes")]


def test_the_v2_runner(references):
    """In a process of its own: which runner it is, vLLM decides when it is imported."""
    pytest.importorskip("triton")
    path = Path(os.environ["DSO_REFERENCES"]) / "references.json"
    ran = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "v2_runner.py"), str(path)],
        env={**os.environ, "TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"},
        capture_output=True, text=True,
    )  # fmt: skip
    assert ran.returncode == 0 and "the V2 runner gives" in ran.stdout, (ran.stdout + ran.stderr)[-3000:]


def test_the_language_backbone_of_a_vision_language_model(references):
    pytest.importorskip("torchvision")  # vLLM's pictures need it; run.sh puts it on the path for this test
    entry = references["llava"]
    with engine(entry["model"], {"adapters": entry["adapters"]}, language_model_only=True) as llm:
        check_cases(llm, entry["cases"])


def test_pictures_of_a_vision_language_model(references):
    """The picture's rows are steered as those of text are, each request at its own strength."""
    pytest.importorskip("torchvision")
    from PIL import Image

    entry = references["llava"]
    cases = entry["pictured"]
    assert cases[0]["tokens"] != cases[len(cases) // 2]["tokens"]  # of another picture, at the same strength
    prompts = [
        {"prompt": case["text"], "multi_modal_data": {"image": Image.new("RGB", case["size"], tuple(case["colour"]))}}
        for case in cases
    ]
    with engine(entry["model"], {"adapters": entry["adapters"]}, skip_tokenizer_init=False) as llm:
        params = [sampling(case["strengths"]) for case in cases]
        check(run(llm, prompts, params), cases)
        check(run(llm, prompts[::-1], params[::-1]), cases[::-1])  # what was kept of one is read by that one alone


def test_speculation_by_a_draft_model(references, fair):
    """The draft is not steered; what it proposes is judged by the steered model."""
    llama = references["llama"]
    speculation = {"method": "draft_model", "model": references["mistral"]["model"], "num_speculative_tokens": 2}
    with engine(llama["model"], fair, disable_log_stats=False, speculative_config=speculation) as llm:
        check_cases(llm, llama["cases"])
        counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
        assert counters["vllm:spec_decode_num_draft_tokens"] > 0


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "mistral", "gemma3", "qwen3_moe", "gpt2", "opt", "gpt_neox"])
def test_architecture(references, name):
    entry = references[name]
    with engine(entry["model"], {"adapters": {"fair": entry["adapters"]["fair"]}}) as llm:
        check_cases(llm, entry["cases"])


# --- refusals at the start -------------------------------------------------------------------------------------------


def changed(folder: str, to: Path, tensors=None, **config) -> str:
    """A copy of an adapter with other tensors or another configuration; its checksum is right for the tensors."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    path = to / "adapter_config.json"
    content = json.loads(path.read_text())
    if tensors is not None:
        save_file(tensors(load_file(to / "adapter_model.safetensors")), to / "adapter_model.safetensors")
        content["weights_sha256"] = None
    path.write_text(json.dumps({**content, **config}))
    return str(to)


def with_site(site: str, width: int):
    import torch

    return lambda tensors: {**tensors, f"base_model.model.{site}.dso_affine.slope": torch.ones(width)}


def test_adapters_that_do_not_fit_are_refused_at_the_start(references, tmp_path):
    import torch

    fair = references["llama"]["adapters"]["fair"]
    qwen3 = references["qwen3"]["adapters"]["fair"]
    base = {"model_type": "llama", "hidden_size": 64, "num_sites": 8}
    slope = "base_model.model.model.layers.0.input_layernorm.dso_affine.slope"
    cases = [
        (qwen3, None, {}, "llama", "model_type 'qwen3', here 'llama'"),
        (fair, None, {"base_fingerprint": {**base, "num_sites": 9}}, "llama", "num_sites 9, here 8"),
        (fair, None, {"weights_sha256": "0" * 64}, "llama", "its sha256 differs"),
        (fair, None, {"peft_type": "LORA"}, "llama", "of the kind 'LORA', not DSO"),
        (fair, None, {"modules_to_save": ["lm_head"]}, "llama", "whole modules cannot be served"),
        (fair, lambda t: {**t, slope: torch.full((64,), torch.nan)}, {}, "llama", "not a vector of finite"),
        (fair, with_site("model.layers.9.input_layernorm", 64), {}, "llama", "does not have"),
        (fair, with_site("model.layers.0.self_attn", 64), {}, "llama", "of width None"),
        (qwen3, with_site("model.layers.0.self_attn.q_norm", 32), {}, "qwen3", "not with one row per token"),
    ]
    for i, (folder, tensors, config, model, message) in enumerate(cases):
        adapter = changed(folder, tmp_path / str(i), tensors, **config)
        with (
            pytest.raises(ValueError, match=message),
            engine(references[model]["model"], {"adapters": {"fair": adapter}}),
        ):
            pass


@pytest.mark.parametrize(
    "dso, arguments, message",
    [
        ({"adapters": {"fair": "/nowhere"}}, {}, "is no folder here"),
        ({"adapter": {}}, {}, "unknown key 'adapter'"),
        ({"adapters": {"fair": "FAIR", "other": "FAIR"}}, {}, 'say with "default"'),
        ({"adapters": {"fair": "FAIR"}, "default": {"fear": 1}}, {}, "names the adapter 'fear'"),
        ({"adapters": {"fair": "FAIR"}, "default": "much"}, {}, "must be a number"),
        ({"adapters": {"fair": "FAIR"}, "slots": 0}, {}, "at least the number of adapters"),
        ({"adapters": {"a b": "FAIR"}}, {}, "may hold letters, digits"),
        ({"adapters": {"fair": "FAIR"}}, {"runner": "pooling"}, "cannot be served with pooling models"),
        ({"adapters": {"fair": "FAIR"}}, {"kv_sharing_fast_prefill": True}, "kv-sharing-fast-prefill"),
        (
            {"adapters": {"fair": "FAIR"}},
            {"kv_transfer_config": {"kv_connector": "ExampleConnector", "kv_role": "kv_both"}},
            "KV connectors",
        ),
    ],
)
def test_settings_that_cannot_be_served_are_refused_at_the_start(references, dso, arguments, message):
    text = json.dumps(dso).replace("FAIR", references["llama"]["adapters"]["fair"])
    with pytest.raises(ValueError, match=message), engine(references["llama"]["model"], json.loads(text), **arguments):
        pass


def test_a_pickle_is_never_read(references, tmp_path):
    folder = changed(references["llama"]["adapters"]["fair"], tmp_path / "pickle")
    (Path(folder) / "adapter_model.safetensors").rename(Path(folder) / "adapter_model.bin")
    with (
        pytest.raises(ValueError, match="a pickle, which is never read"),
        engine(references["llama"]["model"], {"adapters": {"fair": folder}}),
    ):
        pass


# Last: vLLM 0.32 for CPUs makes no second engine in a process that has imported numba, as its n-gram proposer does.
def test_speculation_by_ngrams(references, fair):
    llama = references["llama"]
    speculation = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 2, "prompt_lookup_min": 1}
    with engine(llama["model"], fair, disable_log_stats=False, speculative_config=speculation) as llm:
        check_cases(llm, llama["cases"])
        counters = {metric.name: metric.value for metric in llm.get_metrics() if hasattr(metric, "value")}
        assert counters["vllm:spec_decode_num_draft_tokens"] > 0
