"""The knob, against a plain computation of h + w (a h + b) with hooks."""

import asyncio
import copy
import pickle
import threading

import pytest
import torch
from models import TEXT_MODELS, build, randomize
from peft import get_peft_model
from torch._dynamo.testing import CompileCounter

import peft_dso
from peft_dso import DSOConfig, DSOLayer


def ids(rows=3, length=5, seed=1):
    return torch.randint(3, 64, (rows, length), generator=torch.Generator().manual_seed(seed))


def run(model, x, **kwargs):
    if model.config.is_encoder_decoder:
        kwargs["decoder_input_ids"] = x[:, :2]
    return model(x, **kwargs).logits


def pairs(model):
    return {name: layer.dso_affine["default"] for name, layer in model.named_modules() if isinstance(layer, DSOLayer)}


def by_hand(base, vectors, strength, x):
    """The base model with a forward hook per norm that does the arithmetic in the open."""
    handles = []
    for name, (a, b) in vectors.items():
        hook = lambda module, args, h, a=a, b=b: h + strength * (a * h + b)  # noqa: E731
        handles.append(base.get_submodule(name).register_forward_hook(hook))
    try:
        return run(base, x)
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", TEXT_MODELS)
@torch.no_grad()
def test_steered_output_is_the_formula_and_zero_is_the_base(name):
    base, x = randomize(build(name)), ids()
    plain = run(base, x)
    model = get_peft_model(copy.deepcopy(base), DSOConfig(init_weights=False)).eval()
    vectors = {
        site.removeprefix("base_model.model."): (affine.slope.clone(), affine.shift.clone())
        for site, affine in pairs(model).items()
    }
    assert len(vectors) == TEXT_MODELS[name][3]
    for strength in (1.0, 0.4, -0.5, 2.0):
        model.set_steering_strength(strength)
        expected = by_hand(base, vectors, strength, x)
        torch.testing.assert_close(run(model, x), expected, rtol=1e-4, atol=1e-5)
        assert (expected - plain).abs().max() > 1e-4
    model.set_steering_strength(0)
    assert torch.equal(run(model, x), plain)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_half_precision(dtype):
    x = ids()
    model = get_peft_model(randomize(build("llama")).to(dtype), DSOConfig(init_weights=False)).eval()
    base = run(model.base_model.model, x) if model.set_steering_strength(0) else run(model, x)
    assert base.dtype == dtype
    assert {p.dtype for a in pairs(model).values() for p in a.parameters()} == {torch.float32}
    # A slope below half a unit in the last place of 1.0 in bfloat16 still moves the output.
    for affine in pairs(model).values():
        affine.shift.data.zero_()
        affine.slope.data.fill_(2**-9)
    model.set_steering_strength(1)
    h = torch.full((1, 2, 16), 1.0, dtype=dtype)
    layer = next(m for m in model.modules() if isinstance(m, DSOLayer))
    norm = layer.get_base_layer()(h).float()
    torch.testing.assert_close(layer(h).float(), (norm * (1 + 2**-9)).to(dtype).float(), rtol=0, atol=0)


def test_casting_the_model_leaves_the_pair_alone():
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False, steering_strength=0.3))
    before = {n: (a.slope.clone(), a.shift.clone()) for n, a in pairs(model).items()}
    model.to(torch.bfloat16)
    for name, affine in pairs(model).items():
        assert torch.equal(affine.slope, before[name][0]) and torch.equal(affine.shift, before[name][1])
    assert model.get_steering_strength() == 0.3
    model.to("meta")
    assert all(p.is_meta for p in model.parameters())


# --- per row ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TEXT_MODELS)
@torch.no_grad()
def test_each_row_is_a_run_of_its_own(name):
    model, x = get_peft_model(randomize(build(name)), DSOConfig(init_weights=False)).eval(), ids()
    strengths = [0.0, 0.5, 1.0]
    model.set_steering_strength(strengths)
    together = run(model, x)
    for i, strength in enumerate(strengths):
        model.set_steering_strength(strength)
        torch.testing.assert_close(together[i], run(model, x[i : i + 1])[0], rtol=1e-4, atol=1e-5)
    model.set_steering_strength([0.1, 0.2])
    with pytest.raises(ValueError, match="2 rows and the batch has 3"):
        run(model, x)


def test_a_batch_that_is_a_multiple_of_the_rows_is_still_refused():
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval()
    model.set_steering_strength([0.0, 1.0])
    with pytest.raises(ValueError, match="2 rows and the batch has 4"):
        run(model, ids(4))


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt", "t5"])
@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}], ids=["greedy", "beams", "returned"]
)
@torch.no_grad()
def test_generate_per_row_with_left_padding_and_cache(name, options):
    model = get_peft_model(randomize(build(name)), DSOConfig(init_weights=False)).eval()
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0, **options}
    x, mask = ids(), torch.ones(3, 5, dtype=torch.long)
    if name != "t5":
        x[1, :2], mask[1, :2] = 0, 0
    strengths = [0.0, 0.6, 1.0]
    model.set_steering_strength(strengths)
    together = model.generate(input_ids=x, attention_mask=mask, **options)
    k = options.get("num_return_sequences", 1)
    for i, strength in enumerate(strengths):
        model.set_steering_strength(strength)
        alone = model.generate(input_ids=x[i : i + 1], attention_mask=mask[i : i + 1], **options)
        assert torch.equal(together[i * k : (i + 1) * k], alone)
    # Without the cache, the same tokens: steering is neither lost nor doubled in cached decoding.
    model.set_steering_strength(strengths)
    assert torch.equal(together, model.generate(input_ids=x, attention_mask=mask, use_cache=False, **options))


@torch.no_grad()
def test_beams_from_the_generation_config():
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False, task_type="CAUSAL_LM")).eval()
    model.set_steering_strength([0.0, 1.0])
    model.generation_config.num_beams = 2
    out = model.generate(input_ids=ids(2), attention_mask=torch.ones(2, 5), max_new_tokens=2, pad_token_id=0)
    assert out.shape == (2, 7)
    config = copy.deepcopy(model.generation_config)
    config.num_beams = 3
    out = model.generate(
        input_ids=ids(2), attention_mask=torch.ones(2, 5), generation_config=config, max_new_tokens=2, pad_token_id=0
    )
    assert out.shape == (2, 7)
    assert {m.row_repeats for m in model.modules() if isinstance(m, DSOLayer)} == {1}


def test_a_tower_has_no_rows():
    from models import VISION_MODELS

    config, model_class, _ = VISION_MODELS["llava"]
    model = get_peft_model(model_class(config()), DSOConfig(target_modules=r".*(layer_norm1|input_layernorm)"))
    with pytest.raises(ValueError, match="tower"):
        model.set_steering_strength([0.0, 1.0])
    model.set_steering_strength({r"language_model": [0.0, 1.0]})


# --- setting and reading ---------------------------------------------------------------------------------------------


def test_get_returns_what_was_set():
    model = get_peft_model(build("llama"), DSOConfig(steering_strength=0.25))
    assert model.get_steering_strength() == 0.25
    model.set_steering_strength(torch.tensor([0.1, 0.7]))
    assert model.get_steering_strength() == [0.1, 0.7]
    model.set_steering_strength(0.4)
    model.set_steering_strength({"layers.1": 0.9})
    found = model.get_steering_strength()
    assert found == {
        "model.layers.0.input_layernorm": 0.4,
        "model.layers.0.post_attention_layernorm": 0.4,
        "model.layers.1.input_layernorm": 0.9,
        "model.layers.1.post_attention_layernorm": 0.9,
    }


def test_layer_patterns_match_whole_parts():
    model = get_peft_model(build("llama"), DSOConfig())
    with pytest.raises(ValueError, match="layer'.*matches none"):
        model.set_steering_strength({"layer": 0.5})
    model.set_steering_strength({r"layers\.0\.input_layernorm": 0.5, "layers": 0.2})
    assert set(model.get_steering_strength().values()) == {0.5, 0.2}
    shipped = get_peft_model(build("llama"), DSOConfig(steering_strength={"layers.0": 0.5}))
    assert set(shipped.get_steering_strength().values()) == {0.5, 1.0}
    with pytest.raises(ValueError, match="matches none"):
        get_peft_model(build("llama"), DSOConfig(steering_strength={"nowhere": 0.5}))


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), [0.1, float("nan")], [], [[0.1]], torch.ones(2, 2)])
def test_values_that_are_refused_change_nothing(wrong):
    model = get_peft_model(build("llama"), DSOConfig(steering_strength=0.25))
    with pytest.raises(ValueError):
        model.set_steering_strength(wrong)
    with pytest.raises(ValueError):
        model.set_steering_strength({"layers.0": 0.9, "layers.1": wrong})
    assert model.get_steering_strength() == 0.25


@pytest.mark.parametrize("wrong", [None, "high", True, object(), ["a"]])
def test_types_that_are_refused(wrong):
    with pytest.raises(TypeError):
        get_peft_model(build("llama"), DSOConfig()).set_steering_strength(wrong)


def test_unknown_adapters_and_plain_models():
    model = get_peft_model(build("llama"), DSOConfig())
    with pytest.raises(ValueError, match="'other'.*default"):
        model.set_steering_strength(0.5, "other")
    with pytest.raises(ValueError, match="no DSO adapter"):
        peft_dso.set_steering_strength(build("llama"), 0.5)


def test_context_manager_restores_also_after_an_exception():
    model, x = get_peft_model(build("llama"), DSOConfig(init_weights=False)), ids()
    model.set_steering_strength({"layers.0": 0.3, "layers.1": 0.6})
    before = model.get_steering_strength()
    with pytest.raises(KeyError), model.steering_strength(0.0):
        assert model.get_steering_strength() == 0.0
        raise KeyError
    assert model.get_steering_strength() == before
    with model.steering_strength(0.5):
        loss = run(model, x).sum()
    loss.backward()  # the graph keeps the strength that it was made with


def test_set_in_inference_mode_and_train_afterwards():
    model, x = get_peft_model(build("llama"), DSOConfig(init_weights=False)), ids()
    with torch.inference_mode():
        model.set_steering_strength([0.2, 0.3, 0.4])
        run(model, x)
    run(model, x).sum().backward()


# --- in place --------------------------------------------------------------------------------------------------------


def addresses(model):
    return [affine.strength.data_ptr() for affine in pairs(model).values()]


@torch.no_grad()
def test_what_holds_the_strength_computes_with_the_new_one():
    """As a captured CUDA graph does, which replays on the addresses that it saw."""
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval()
    affine = next(iter(pairs(model).values()))
    for first, second in ((0.25, 0.5), ([0.1, 0.2, 0.3], [0.4, 0.5, 0.6])):
        model.set_steering_strength(first)
        captured, h = affine.strength, torch.randn(3, 16)
        replay = lambda: h + captured.reshape(-1, 1) * affine(h)  # noqa: B023, E731
        before, where = replay(), addresses(model)
        model.set_steering_strength(second)
        expected = h + torch.tensor(second).reshape(-1, 1) * (affine.slope * h + affine.shift)
        torch.testing.assert_close(replay(), expected)
        assert not torch.equal(replay(), before)
        for other in (0.9, [0.7, 0.8, 0.9]):  # one of the two shapes is another: what was captured is put back
            with model.steering_strength(other):
                assert not torch.equal(affine.strength, captured) or addresses(model) == where
            torch.testing.assert_close(replay(), expected)
            assert affine.strength is captured and addresses(model) == where
        with torch.inference_mode():
            model.set_steering_strength(first)
        assert torch.equal(replay(), before) and addresses(model) == where
        assert not affine.strength.is_inference()
    assert len(set(addresses(model))) == len(addresses(model))  # torch.compile guards aliases


def test_a_strength_of_inference_mode_can_be_set_outside():
    with torch.inference_mode():
        model = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval()
    model.set_steering_strength(0.5)
    assert model.get_steering_strength() == 0.5


def test_setting_between_forward_and_backward_changes_neither():
    layer = DSOLayer(torch.nn.LayerNorm(4), "default", DSOConfig(init_weights=False), strength=0.5)
    x, affine = torch.randn(2, 3, 4), layer.dso_affine["default"]
    out = layer(x).sum()
    peft_dso.set_steering_strength(layer, 3.0)
    out.backward()
    torch.testing.assert_close(affine.slope.grad, 0.5 * layer.get_base_layer()(x).detach().sum((0, 1)))


# --- several threads -------------------------------------------------------------------------------------------------


def test_threads_that_borrow_the_strength_wait_for_each_other():
    model, x = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval(), ids(1)
    strengths = [0.0, 0.3, 1.0]
    with torch.no_grad():
        expected = {}
        for strength in strengths:
            model.set_steering_strength(strength)
            expected[strength] = run(model, x)
    model.set_steering_strength(0.5)
    wrong = []

    def serve(strength):
        for i in range(20):
            with torch.no_grad():
                if i % 2:
                    found = model(x, steering_strength=strength).logits
                else:
                    with model.steering_strength(0.7), peft_dso.steering_strength(model.base_model.model, strength):
                        found = run(model, x)
            wrong.extend([strength] if not torch.equal(found, expected[strength]) else [])

    threads = [threading.Thread(target=serve, args=(strength,)) for strength in strengths]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong and model.get_steering_strength() == 0.5


def test_setting_waits_for_the_thread_that_has_borrowed():
    model = get_peft_model(build("llama"), DSOConfig())
    thread = threading.Thread(target=model.set_steering_strength, args=(0.9,))
    with model.steering_strength(0.1):
        thread.start()
        thread.join(0.2)
        assert thread.is_alive() and model.get_steering_strength() == 0.1
    thread.join()
    assert model.get_steering_strength() == 0.9


def test_a_model_does_not_wait_for_its_copy():
    model = get_peft_model(build("llama"), DSOConfig())
    with model.steering_strength(0.1):
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            thread = threading.Thread(target=twin.set_steering_strength, args=(0.9,))
            thread.start()
            thread.join(30)
            assert not thread.is_alive() and twin.get_steering_strength() == 0.9


def test_tasks_of_an_event_loop_are_refused_instead_of_mixed_up():
    model = get_peft_model(build("llama"), DSOConfig(steering_strength=0.5))

    async def borrow(strength):
        with model.steering_strength(strength), model.steering_strength(strength):
            await asyncio.sleep(0)
            return model.get_steering_strength()

    async def both():
        return await asyncio.gather(borrow(0.1), borrow(0.9), return_exceptions=True)

    first, second = asyncio.run(both())
    assert first == 0.1 and isinstance(second, RuntimeError) and "another task" in str(second).lower()
    assert model.get_steering_strength() == 0.5


def test_gradient_is_that_of_the_formula():
    layer = DSOLayer(torch.nn.LayerNorm(4), "default", DSOConfig(init_weights=False), strength=0.5)
    x, affine = torch.randn(2, 3, 4), layer.dso_affine["default"]
    h = layer.get_base_layer()(x).detach()
    layer(x).sum().backward()
    torch.testing.assert_close(affine.slope.grad, 0.5 * h.sum((0, 1)))
    torch.testing.assert_close(affine.shift.grad, torch.full((4,), 0.5 * 6))


@torch.no_grad()
def test_compile_once_for_all_strengths():
    torch._dynamo.reset()
    model, x = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval(), ids()
    counter = CompileCounter()
    compiled = torch.compile(model, backend=counter)
    outputs = []
    for strength in (0.0, 0.4, 1.0, -1.0):
        model.set_steering_strength(strength)
        outputs.append(compiled(x).logits)
        torch.testing.assert_close(outputs[-1], run(model, x))
    once, where = counter.frame_count, addresses(model)
    model.set_steering_strength({"layers.0": 0.2})
    torch.testing.assert_close(compiled(x).logits, run(model, x))
    with model.steering_strength(0.9):
        torch.testing.assert_close(compiled(x).logits, run(model, x))
    assert counter.frame_count == once and addresses(model) == where
    model.set_steering_strength([0.1, 0.2, 0.3])
    compiled(x)
    rows = counter.frame_count
    model.set_steering_strength([0.4, 0.5, 0.6])
    compiled(x)
    assert counter.frame_count == rows
    assert not torch.equal(outputs[0], outputs[1])


@torch.no_grad()
def test_no_hooks_and_no_copies_are_added():
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval()
    parameters = [id(p) for p in model.parameters()]
    for strength in (0.1, [0.1, 0.2], {"layers.0": 0.3}):
        model.set_steering_strength(strength)
    assert [id(p) for p in model.parameters()] == parameters
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


@torch.no_grad()
def test_nothing_goes_stale():
    """Every way in which a pair can change shows in the next output."""
    model, x = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval(), ids()
    seen = [run(model, x)]

    def changed():
        out = run(model, x)
        assert all((out - old).abs().max() > 1e-6 for old in seen)
        seen.append(out)

    affine = next(iter(pairs(model).values()))
    affine.slope.add_(0.5)
    changed()
    affine.slope.data.add_(0.5)
    changed()
    affine.slope.data = affine.slope.data + 0.5
    changed()
    model.load_state_dict({k: v + 0.3 if "dso_" in k else v for k, v in model.state_dict().items()})
    changed()
    with torch.enable_grad():
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        torch.optim.SGD([affine.slope, affine.shift], lr=0.7).step()
    changed()


def test_deepcopy_and_pickle():
    model, x = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval(), ids()
    model.set_steering_strength([0.0, 0.5, 1.0])
    expected = run(model, x)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(run(twin, x), expected)
        twin.set_steering_strength(0.0)
        assert model.get_steering_strength() == [0.0, 0.5, 1.0]
        assert twin.peft_config["default"].peft_type == "DSO"
