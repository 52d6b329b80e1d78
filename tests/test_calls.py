"""The strength of one call: `model(..., steering_strength=...)` and `model.generate(..., steering_strength=...)`."""

import copy
import pickle

import pytest
import torch
from models import build, randomize
from peft import LoraConfig, get_peft_model
from steered import ids, run
from transformers import GenerationConfig

from peft_dso import DSOConfig, DSOLayer, steering_strength


GENERATION = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def steered(name="llama", task_type=None, **config):
    torch.manual_seed(3)
    config = DSOConfig(init_weights=False, task_type=task_type, **config)
    model = get_peft_model(randomize(build(name)), config).eval()
    model.set_steering_strength(0.25)
    return model


def untouched(model):
    assert model.get_steering_strength() == 0.25
    base = model.get_base_model()
    assert "forward" not in base.__dict__ and "generate" not in base.__dict__
    assert {m.row_repeats for m in model.modules() if isinstance(m, DSOLayer)} == {1}
    return True


@pytest.mark.parametrize("task_type", [None, "CAUSAL_LM", "SEQ_2_SEQ_LM"])
@torch.no_grad()
def test_forward(task_type):
    model, x = steered("t5" if task_type == "SEQ_2_SEQ_LM" else "llama", task_type), ids()
    before = run(model, x)
    for strength in (0.0, 0.8, torch.tensor(0.3), [0.0, 0.5, 1.0], {r".*block.0|layers.0": 0.9}):
        found = run(model, x, steering_strength=strength)
        with model.steering_strength(strength):
            expected = run(model, x)
        assert torch.equal(found, expected) and not torch.equal(found, before)
        assert untouched(model) and torch.equal(run(model, x), before)
    assert torch.equal(run(model, x, steering_strength=None), before)


@pytest.mark.parametrize(("name", "task_type"), [("llama", None), ("gpt2", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")])
@pytest.mark.parametrize(
    "options",
    [{}, {"use_cache": False}, {"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}],
    ids=["greedy", "uncached", "beams", "returned"],
)
@torch.no_grad()
def test_generate(name, task_type, options):
    model, x, mask = steered(name, task_type), ids(), torch.ones(3, 5, dtype=torch.long)
    options, k = {**GENERATION, **options}, options.get("num_return_sequences", 1)
    strengths = [0.0, 0.6, 3.0]
    together = model.generate(input_ids=x, attention_mask=mask, steering_strength=strengths, **options)
    assert untouched(model)
    for i, strength in enumerate(strengths):
        row = {"input_ids": x[i : i + 1], "attention_mask": mask[i : i + 1], **options}
        alone = model.generate(**row, steering_strength=strength)
        assert torch.equal(together[i * k : (i + 1) * k], alone)
        with model.steering_strength(strength):
            assert torch.equal(model.generate(**row), alone)
    assert untouched(model)


@torch.no_grad()
def test_sampling_repeats_rows_too():
    model, x = steered(task_type="CAUSAL_LM"), ids(2)
    options = {**GENERATION, "do_sample": True, "num_return_sequences": 3, "attention_mask": torch.ones_like(x)}
    torch.manual_seed(0)
    together = model.generate(input_ids=x, steering_strength=[0.0, 0.8], **options)
    assert together.shape[0] == 6
    model.set_steering_strength([0.0, 0.8])
    torch.manual_seed(0)
    assert torch.equal(together, model.generate(input_ids=x, **options))


def test_errors_restore_what_was_there():
    model, x = steered(task_type="CAUSAL_LM"), ids()
    for wrong, error in (
        ([0.1, 0.2], ValueError),
        (float("nan"), ValueError),
        ("much", TypeError),
        ({"no": 1.0}, ValueError),
    ):
        with pytest.raises(error):
            model(x, steering_strength=wrong)
        with pytest.raises(error):
            model.generate(input_ids=x, attention_mask=torch.ones_like(x), steering_strength=wrong, **GENERATION)
        assert untouched(model)
    with pytest.raises(ValueError, match="not_an_option"):
        model.generate(input_ids=x, steering_strength=0.5, not_an_option=1)
    assert untouched(model)
    pickle.loads(pickle.dumps(copy.deepcopy(model)))


@torch.no_grad()
def test_with_an_adapter_per_row():
    model, x = steered(), ids()
    model.add_adapter("other", DSOConfig(init_weights=False))
    names, strengths = ["other", "__base__", "default"], [0.5, 0.9, 2.0]
    mixed = model(x, adapter_names=names, steering_strength=strengths).logits
    assert untouched(model) and model.get_steering_strength("other") == 1.0
    for i, (name, strength) in enumerate(zip(names, strengths, strict=True)):
        model.set_adapter("default" if name == "__base__" else name)
        alone = model(x[i : i + 1], steering_strength=0.0 if name == "__base__" else strength).logits
        torch.testing.assert_close(mixed[i], alone[0], rtol=1e-4, atol=1e-5)
    model.set_adapter("default")
    base = model(x, adapter_names=["__base__"] * 3, steering_strength=0.7).logits
    with model.disable_adapter():
        assert torch.equal(base, run(model, x))


def test_gradients_are_those_of_the_call():
    model, x = steered().train(), ids()
    model(x, steering_strength=0.8).logits.square().sum().backward()
    found = [p.grad.clone() for p in model.parameters() if p.requires_grad]
    model.zero_grad()
    model.set_steering_strength(0.8)
    run(model, x).square().sum().backward()
    for one, two in zip(found, (p.grad for p in model.parameters() if p.requires_grad), strict=True):
        torch.testing.assert_close(one, two)
    model.enable_input_require_grads()
    model.gradient_checkpointing_enable({"use_reentrant": False})
    with pytest.raises(ValueError, match="gradient checkpointing"):
        model(x, steering_strength=0.5)


@torch.no_grad()
def test_others_are_not_affected():
    lora = get_peft_model(build("llama"), LoraConfig(task_type="CAUSAL_LM"))
    for model in (build("llama"), lora):
        with pytest.raises(ValueError, match="steering_strength"):
            model.generate(input_ids=ids(), steering_strength=0.5, **GENERATION)
    model = steered()
    model.merge_adapter(adapter_names=[])
    with model.disable_adapter(), pytest.raises(ValueError, match="steering_strength"):
        model.generate(input_ids=ids(), steering_strength=0.5, **GENERATION)


@torch.no_grad()
def test_calls_that_do_not_pass_through_the_peft_model():
    model, x, base = steered(), ids(), randomize(build("llama"))
    plain, before = run(base, x), run(model, x)
    for strength, rows in ((0.0, 3), ([0.0, 0.5, 1.0], 1)):
        found = run(model.base_model, x, steering_strength=strength)
        assert torch.equal(found[:rows], plain[:rows])
        assert torch.equal(found, run(model, x, steering_strength=strength))
    assert untouched(model) and torch.equal(run(model, x), before)
    base.add_adapter(DSOConfig(init_weights=False))
    base.add_adapter(DSOConfig(init_weights=False), "second")
    for own in (model.get_base_model(), base, copy.deepcopy(base), pickle.loads(pickle.dumps(base))):
        with pytest.raises(TypeError, match=r"steering_strength=0\.0: .*LlamaForCausalLM itself.*Call the PeftModel"):
            run(own, x, steering_strength=0.0)
        run(own, x, steering_strength=None)
        with steering_strength(own, 0.0):
            assert torch.equal(run(own, x), plain)


@torch.no_grad()
def test_what_no_longer_steers_takes_the_keyword_as_the_base_does():
    model, x = steered(), ids()
    with model.disable_adapter():
        plain = run(model, x)
        assert torch.equal(run(model, x, steering_strength=0.5), plain)
    unloaded = model.unload()
    assert not unloaded._forward_pre_hooks and unloaded.__dict__.keys() == build("llama").__dict__.keys()
    assert torch.equal(run(unloaded, x, steering_strength=0.5), plain)


class Logits(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return self.model(input_ids=x, use_cache=False).logits


@torch.no_grad()
def test_the_base_model_is_traced_and_exported_as_before():
    model, x = steered(), ids()
    expected, own = run(model, x), Logits(model.get_base_model())
    traced = torch.jit.trace(own, x, check_trace=False)
    exported = torch.export.export(own, (x,), strict=False).module()
    compiled = torch.compile(own, backend="eager", fullgraph=True)
    for found in (traced, exported, compiled):
        torch.testing.assert_close(found(x), expected)


@pytest.mark.parametrize("own", [{"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}, {}])
@pytest.mark.parametrize("given", [{}, {"num_beams": 3}, {"num_return_sequences": 2, "num_beams": 2}])
@torch.no_grad()
def test_beams_of_the_model_and_of_the_given_config(own, given):
    """transformers fills in from the model's generation config what the given one leaves open."""
    model, x = steered(), ids()
    model.generation_config.update(**own)
    config = GenerationConfig(**GENERATION, **given)
    options = {"attention_mask": torch.ones(3, 5, dtype=torch.long), "generation_config": config}
    together = model.generate(input_ids=x, steering_strength=[0.0, 0.6, 3.0], **options)
    model.set_steering_strength([0.0, 0.6, 3.0])
    assert torch.equal(together, model.generate(input_ids=x, **options))
    k = len(together) // 3
    for i, strength in enumerate((0.0, 0.6, 3.0)):
        options["attention_mask"] = torch.ones(1, 5, dtype=torch.long)
        model.set_steering_strength(strength)
        assert torch.equal(together[i * k : (i + 1) * k], model.generate(input_ids=x[i : i + 1], **options))


@torch.no_grad()
def test_only_generate_repeats_rows():
    model, x = steered(), ids(6)
    model.generation_config.num_beams = 2
    for call in (lambda: run(model, x, steering_strength=[0.0, 0.5, 1.0]), lambda: run(model, x)):
        with pytest.raises(ValueError, match="set for 3 rows and the batch has 6"):
            call()
        model.set_steering_strength([0.0, 0.5, 1.0])


def test_a_part_that_is_trained_is_seen():
    """Gradient checkpointing would run it again without the strength of the call."""
    model = get_peft_model(build("llama"), DSOConfig(init_weights=False)).eval()
    model.get_base_model().gradient_checkpointing_enable()
    model.get_base_model().model.train()
    with pytest.raises(ValueError, match="runs the blocks again in backward"):
        model(ids(), steering_strength=0.5)
