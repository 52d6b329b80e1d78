"""What the strength survives: captured computations, threads, copies, compilation."""

import asyncio
import copy
import pickle
import threading

import torch
from models import build
from peft import get_peft_model
from steered import ids, pairs, run
from torch._dynamo.testing import CompileCounter

import peft_dso
from peft_dso import DSOConfig, DSOLayer


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
def test_no_hooks_on_layers_and_no_copies_are_added():
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval()
    parameters = [id(p) for p in model.parameters()]
    for strength in (0.1, [0.1, 0.2], {"layers.0": 0.3}):
        model.set_steering_strength(strength)
    assert [id(p) for p in model.parameters()] == parameters
    # But for the one that refuses a strength in calls of the base model itself.
    assert [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks] == [model.get_base_model()]


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
