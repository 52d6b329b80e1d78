"""
What a strength per request costs in vLLM. Run it in the environment of the plug-in's tests, which
serving/vllm/tests/environment.sh makes, on a model's folder and an adapter for it:

    python benchmarks/serving.py MODEL ADAPTER [--compiled] [--rounds 9] [--requests 256] [--out FILE]

Four engines, each in a process of its own: vLLM without the plug-in, twice, since two processes that do the same
differ too, with the adapter, and with a LoRA of rank 8 on all linear layers under vLLM's own multi-LoRA. In turn, in
an order that changes from round to round, they answer the same requests, 64 at a time: once with short prompts and
many tokens (decode), once with long prompts and one token (prefill). Reported are medians over the rounds of the CPU
seconds of the engine's process, and of their ratio to the base of the same round, with the middle half. Whether
anything is mixed up is asked by serving/vllm/tests/test_clients.py.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


SEQUENCES = 64
SHAPES = {"decode": (16, 16), "prefill": (128, 1)}  # tokens of a prompt, and of its answer
VARIANTS: dict[str, tuple[str, int | None]] = {
    "base": ("base", None),
    "base in another process": ("base again", None),
    "plug-in, nobody steered": ("dso", 0),
    "1 strength": ("dso", 1),
    "8 strengths": ("dso", 8),
    "64 strengths": ("dso", 64),
    "256 strengths": ("dso", 256),
    "LoRA, rank 8": ("lora", None),
}
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
}


def make_lora(model: str, folder: Path) -> None:
    """A LoRA of rank 8 with random numbers on all linear layers of the blocks, as PEFT saves one."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    generator, tensors, modules = torch.Generator().manual_seed(0), {}, set()
    for file in Path(model).glob("*.safetensors"):
        with safe_open(file, "pt") as weights:
            for key in weights.keys():  # noqa: SIM118
                name, _, kind = key.rpartition(".")
                if kind != "weight" or not name.endswith("_proj"):
                    continue
                rows, columns = weights.get_slice(key).get_shape()
                modules.add(name.rpartition(".")[2])
                for part, shape in (("lora_A", (8, columns)), ("lora_B", (rows, 8))):
                    tensors[f"base_model.model.{name}.{part}.weight"] = 0.01 * torch.randn(*shape, generator=generator)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": sorted(modules), "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def serve_engine(arguments: argparse.Namespace) -> None:
    """A process with one engine: reads {"shape", "distinct"} lines and answers with seconds; ends with its input."""
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    more: dict[str, Any] = {}
    if arguments.engine == "dso":
        more["additional_config"] = {"dso": {"adapters": {"fair": arguments.adapter}}}
    if arguments.engine == "lora":
        more |= {"enable_lora": True, "max_lora_rank": 8, "max_loras": 1}
    lora = LoRARequest("lora", 1, arguments.lora) if arguments.engine == "lora" else None
    llm = LLM(
        arguments.model, skip_tokenizer_init=True, enforce_eager=not arguments.compiled, max_model_len=512,
        max_num_seqs=SEQUENCES, max_num_batched_tokens=2048, enable_prefix_caching=False, dtype=arguments.dtype,
        kv_cache_memory_bytes=2**30, **more,
    )  # fmt: skip
    print("ready", flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        length, tokens = SHAPES[task["shape"]]
        distinct, params = task["distinct"], []
        for i in range(arguments.requests):
            strength = 0.1 + 0.9 * (i % distinct) / distinct if distinct else 0.0
            fields = {} if distinct is None else {"extra_args": {"dso_strength": strength}}
            params.append(
                SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True, detokenize=False, **fields)
            )
        prompts = [{"prompt_token_ids": [5 + (i + j) % 50 for j in range(length)]} for i in range(arguments.requests)]
        started = time.process_time()
        llm.generate(prompts, params, use_tqdm=False, lora_request=lora)
        print(json.dumps(time.process_time() - started), flush=True)


class Engine:
    """
    That process, with its engine ready.

    Args:
        kind (`str`): "base", "base again", "dso" or "lora".
        arguments (`list[str]`): of this script.
    """

    def __init__(self, kind: str, arguments: list[str], log: Path) -> None:
        self.log = log
        environment = {**os.environ, **ENVIRONMENT, **({"VLLM_PLUGINS": ""} if kind != "dso" else {})}
        with log.open("w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, __file__, *arguments, "--engine", kind],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment,
            )
        self.answer()

    def answer(self) -> str:
        """Its next line, without what vLLM prints."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() == "ready" or line[:1].isdigit():
                return line
        raise RuntimeError("An engine has ended: " + self.log.read_text()[-3000:])

    def seconds(self, shape: str, distinct: int | None) -> float:
        """How long it takes for all requests."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"shape": shape, "distinct": distinct}) + "\n")
        self.process.stdin.flush()
        return float(self.answer())


def measure(arguments: argparse.Namespace, scratch: Path) -> dict[str, dict[str, list[float]]]:
    """CPU seconds by shape and variant, a value per round; the first round, which warms up, is left out."""
    passed = list(sys.argv[1:])
    if not arguments.lora and not arguments.without_lora:
        make_lora(arguments.model, scratch)
        passed += ["--lora", str(scratch)]
    variants = {name: v for name, v in VARIANTS.items() if v[0] != "lora" or not arguments.without_lora}
    variants = {name: v for name, v in variants.items() if not v[1] or v[1] <= arguments.requests}
    engines = {kind: Engine(kind, passed, scratch / kind) for kind in dict.fromkeys(k for k, _ in variants.values())}
    found: dict[str, dict[str, list[float]]] = {shape: {name: [] for name in variants} for shape in SHAPES}
    order = list(variants)
    for count in range(arguments.rounds + 1):
        random.Random(count).shuffle(order)
        for shape, by_name in found.items():
            for name in order:
                kind, distinct = variants[name]
                seconds = engines[kind].seconds(shape, distinct)
                if count:
                    by_name[name].append(seconds)
    for engine in engines.values():
        engine.process.communicate()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("adapter")
    parser.add_argument("--lora", default="", help="a LoRA of the model; by default one is made")
    parser.add_argument("--without-lora", action="store_true")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--requests", type=int, default=256)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.engine:
        serve_engine(arguments)
        return
    with tempfile.TemporaryDirectory() as scratch:
        found = measure(arguments, Path(scratch))
    for shape, by_name in found.items():
        print(f"\n{shape}, {'compiled' if arguments.compiled else 'eager'}, {arguments.dtype}, {arguments.requests} "
              f"requests, {arguments.rounds} rounds: CPU seconds, ratio (middle half)")  # fmt: skip
        for name, values in by_name.items():
            ratios = sorted(value / base for value, base in zip(values, by_name["base"], strict=True))
            low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
            middle = statistics.median(values)
            print(f"  {name:26} {middle:8.3f}  {statistics.median(ratios):.3f} ({low:.3f} - {high:.3f})")
    if arguments.out:
        arguments.out.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
