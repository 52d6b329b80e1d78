"""Adapters that are loaded and unloaded in an offline engine."""

import pytest
from conftest import check, check_cases, engine, run, sampling
from peft_dso_vllm import load_adapter, unload_adapter
from vllm.exceptions import VLLMValidationError


def test_an_engine_that_starts_with_free_slots_only(references):
    llama = references["llama"]
    base = [case for case in llama["cases"] if case["strengths"]["fair"] == 0]
    with engine(llama["model"], {"slots": 3}) as llm:
        check(run(llm, [case["prompt"] for case in base], [sampling(None)] * len(base)), base)
        with pytest.raises(VLLMValidationError, match="adapters loaded: none"):
            run(llm, [[5, 6]], [sampling(0.4)])
        load_adapter(llm, "fair", llama["adapters"]["fair"])
        check_cases(llm, llama["cases"])
        with pytest.raises(VLLMValidationError, match="Name the one that is meant"):
            run(llm, [[5, 6]], [sampling(0.4)])
        load_adapter(llm, "other", {"path": llama["adapters"]["other"]})
        check_cases(llm, llama["mixed"])
        with pytest.raises(ValueError, match="2 slots are needed and 1 of 3 are free"):
            load_adapter(llm, "layered", llama["adapters"]["layered"])
        unload_adapter(llm, "fair")
        load_adapter(llm, "layered", llama["adapters"]["layered"])
        cases = llama["layered"]
        named = [sampling({"layered:published": 1.0})] * len(cases)
        check(run(llm, [case["prompt"] for case in cases], named), cases)
        with pytest.raises(VLLMValidationError, match="There is no adapter 'fair'"):
            run(llm, [[5, 6]], [sampling({"fair": 0.4})])
        unload_adapter(llm, "layered")
        unload_adapter(llm, "other")
        check(run(llm, [case["prompt"] for case in base], [sampling(None)] * len(base)), base)
