"""One engine with two adapters against what `peft_dso` itself generates, and against an engine without the plug-in."""

import pytest
from conftest import check, check_cases, engine, run, sampling
from vllm.exceptions import VLLMValidationError


@pytest.fixture(scope="module")
def plain(references):
    """What an engine without adapters says to the prompts of the cases at strength 0, alone and in its own batch."""
    llama = references["llama"]
    cases = [case for case in llama["cases"] if case["strengths"]["fair"] == 0]
    with engine(llama["model"]) as llm:
        with pytest.raises(VLLMValidationError, match="this server steers nothing. Start it with --additional-config"):
            run(llm, [[5, 6]], [sampling(0.4)])
        prompts = [case["prompt"] for case in cases]
        return prompts, run(llm, prompts, [sampling(None)] * len(prompts))


@pytest.fixture(scope="module")
def llm(plain, references):
    adapters = {name: references["llama"]["adapters"][name] for name in ("fair", "other")}
    with engine(references["llama"]["model"], {"adapters": adapters, "default": {"fair": 1.0}}, block_size=32) as llm:
        yield llm


def cached_tokens(llm, prompt, strength):
    """The tokens that a request takes from the prefix cache, and its result."""
    (output,) = llm.generate([{"prompt_token_ids": prompt}], [sampling(strength)], use_tqdm=False)
    tokens = list(output.outputs[0].token_ids)
    return output.num_cached_tokens, (
        tokens,
        [at[t].logprob for at, t in zip(output.outputs[0].logprobs, tokens, strict=False)],
    )


def test_seven_strengths_in_one_batch(llm, references):
    check_cases(llm, references["llama"]["cases"])


def test_two_adapters_mixed_per_request(llm, references):
    check_cases(llm, references["llama"]["mixed"])


def test_without_the_field_a_request_gets_the_default(llm, references):
    cases = [case for case in references["llama"]["cases"] if case["strengths"]["fair"] == 1]
    check(run(llm, [case["prompt"] for case in cases], [sampling(None)] * len(cases)), cases)


def test_every_spelling_of_a_strength(llm, references):
    from vllm import SamplingParams

    (case,) = [c for c in references["llama"]["cases"][:7] if c["strengths"]["fair"] == 0.4]
    fields = [{"dso_strength": 0.4}, {"dso_strength": {"fair": 0.4}}, {"dso_strength:fair": 0.4, "others": "field"}]
    options = {"temperature": 0, "max_tokens": 24, "ignore_eos": True, "logprobs": 1, "detokenize": False}
    params = [SamplingParams(**options, extra_args=field) for field in fields]
    check(run(llm, [case["prompt"]] * 3, params), [case] * 3)


def test_strength_0_is_the_base_bit_for_bit_also_beside_steered_rows(llm, plain):
    prompts, expected = plain
    assert run(llm, prompts, [sampling(0)] * len(prompts)) == expected
    assert run(llm, prompts, [sampling(-0.0)] * len(prompts)) == expected
    # Of the same shape as that batch, so that the same kernels add in the same order.
    mixed = run(llm, prompts, [sampling(0 if i % 2 else 1.5) for i in range(len(prompts))])
    assert mixed[1::2] == expected[1::2]
    assert mixed[0::2] != expected[0::2]
    assert run(llm, prompts, [sampling(0)] * len(prompts)) == expected


def test_output_does_not_depend_on_the_batch(llm, references):
    cases = references["llama"]["cases"]
    for case in (cases[4], cases[40]):
        check_cases(llm, [case])
        check_cases(llm, [*cases[:3], case, *cases[60:]])


def test_kv_of_another_strength_is_never_read(llm, references):
    llm.reset_prefix_cache()
    by_strength = {case["strengths"]["fair"]: case for case in references["llama"]["long"]}
    prompt = by_strength[0.0]["prompt"]
    found = []
    for strength in (0.0, 1.0, 0.4, 1.0, -0.0, 0.4):
        cached, result = cached_tokens(llm, prompt, strength)
        found.append(cached)
        check([result], [by_strength[strength]])
    assert found[:3] == [0, 0, 0]
    assert all(cached >= 96 for cached in found[3:])
    # The default's KV is that of the same strength named, and equal float32 strengths are equal.
    assert cached_tokens(llm, prompt, None)[0] >= 96
    assert cached_tokens(llm, prompt, 0.4 + 1e-12)[0] >= 96
    assert cached_tokens(llm, prompt, {"other": 1.0})[0] == 0
    # A salt of the request's own stays its own.
    salted = {"prompt_token_ids": prompt, "cache_salt": "mine"}
    assert llm.generate([salted], [sampling(0.4)], use_tqdm=False)[0].num_cached_tokens == 0
    assert llm.generate([salted], [sampling(0.4)], use_tqdm=False)[0].num_cached_tokens >= 96


def test_second_turn_is_steered(llm, references):
    """A chat's second turn reads the first one's KV and goes on at its strength."""
    (case,) = [case for case in references["llama"]["long"] if case["strengths"]["fair"] == 0.4]
    first, second = case["prompt"] + case["tokens"][:8], case["tokens"][8:]
    llm.reset_prefix_cache()
    cached_tokens(llm, case["prompt"], 0.4)
    cached, (tokens, _) = cached_tokens(llm, first, 0.4)
    assert cached >= 96
    assert tokens[: len(second)] == second


def test_several_samples_of_one_request_share_its_strength(llm, references):
    from vllm import SamplingParams

    (case,) = [c for c in references["llama"]["cases"][:7] if c["strengths"]["fair"] == 0.7]
    params = SamplingParams(
        n=3, temperature=1, top_k=1, seed=1, max_tokens=24, ignore_eos=True, detokenize=False,
        extra_args={"dso_strength": 0.7},
    )  # fmt: skip
    (output,) = llm.generate([{"prompt_token_ids": case["prompt"]}], [params], use_tqdm=False)
    assert [list(one.token_ids) for one in output.outputs] == [case["tokens"]] * 3


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"dso_strength": "0.4"}, "must be a number such as 0.4, got '0.4'"),
        ({"dso_strength": [0.4]}, "must be a number"),
        ({"dso_strength": True}, "must be a number"),
        ({"dso_strength": None}, "must be a number"),
        ({"dso_strength": float("nan")}, "must be from -10 to 10"),
        ({"dso_strength": float("inf")}, "must be from -10 to 10"),
        ({"dso_strength": 1e39}, "must be from -10 to 10"),
        ({"dso_strength": {"fear": 1}}, "There is no adapter 'fear'. Loaded: fair, other"),
        ({"dso_strength:fear": 1}, "There is no adapter 'fear'"),
        ({"dso_strength:fair": 1, "dso_strength": 0.2}, "given twice"),
        ({"dso_strenght": 0.4}, "Unknown field 'dso_strenght'"),
        ({"steering_strength": 0.4}, "Unknown field 'steering_strength'"),
    ],
)
def test_bad_fields_are_refused_and_nothing_else_suffers(llm, references, fields, message):
    from vllm import SamplingParams

    with pytest.raises(VLLMValidationError, match=message):
        llm.generate([{"prompt_token_ids": [5, 6]}], [SamplingParams(extra_args=fields)], use_tqdm=False)
    assert not llm.llm_engine.has_unfinished_requests()
