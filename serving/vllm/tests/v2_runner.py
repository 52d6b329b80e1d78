"""
vLLM's V2 runner on a CPU, for test_features.py: Triton interprets the kernels (`TRITON_INTERPRET=1`), and a stand-in
for its CPU driver, which vLLM looks for before it takes them, is put in place before vLLM is imported.

    TRITON_INTERPRET=1 VLLM_USE_V2_MODEL_RUNNER=1 python v2_runner.py REFERENCES_JSON
"""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

from conftest import check_cases, engine, runner_of
from triton.backends import backends


class Driver:
    """Of Triton's CPU backend; nothing is launched with it."""

    @staticmethod
    def is_active() -> bool:
        return True


def main() -> None:
    backends["cpu"] = SimpleNamespace(driver=Driver, compiler=None)
    llama = json.loads(Path(sys.argv[1]).read_text())["llama"]
    adapters = {name: llama["adapters"][name] for name in ("fair", "other")}
    options = {"max_num_batched_tokens": 64, "max_num_seqs": 32, "enable_prefix_caching": True}
    with engine(llama["model"], {"adapters": adapters, "default": {"fair": 1}}, **options) as llm:
        assert hasattr(runner_of(llm), "model_state"), "this is the V1 runner"
        check_cases(llm, [*llama["cases"], *llama["long"]])  # prompts are cut in pieces of 64 tokens
        check_cases(llm, [*llama["mixed"], *llama["cases"][:14]])  # and read from the prefix cache
    print("the V2 runner gives what the package gives")


if __name__ == "__main__":
    main()
