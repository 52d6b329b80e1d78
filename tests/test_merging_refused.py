"""What is refused because merging or unloading would lose the steering, or another adapter's work."""

import copy

import pytest
import torch
import transformers
from models import TEXT, build, randomize
from peft import LNTuningConfig, get_peft_model
from steered import ids, run

from peft_dso import DSOConfig, DSOLayer
from peft_dso.export import fold_strength


@torch.no_grad()
def test_a_norm_in_two_places_is_refused_and_weights_in_two_norms_are_not_folded_into():
    base, x = randomize(build("gpt2")), ids()
    first, second = (block.ln_1 for block in base.transformer.h)
    base.transformer.h[1].ln_1 = first
    names = {name for name, _ in base.named_modules()}
    with pytest.raises(ValueError, match=r"h\.0\.ln_1 and transformer\.h\.1\.ln_1 are one and the same norm"):
        get_peft_model(base, DSOConfig(init_weights=False))
    assert {name for name, _ in base.named_modules()} == names
    steered = get_peft_model(copy.deepcopy(base), DSOConfig(init_weights=False, exclude_modules=["ln_1"]))
    assert sum(isinstance(m, DSOLayer) for m in steered.modules()) == 2

    base.transformer.h[1].ln_1 = second
    second.weight = first.weight
    expected, model = run(base, x), get_peft_model(copy.deepcopy(base), DSOConfig(init_weights=False)).eval()
    before = run(model, x)
    assert not torch.equal(expected, before)
    for fold in (model.merge_adapter, model.merge_and_unload, lambda: fold_strength(model)):
        with pytest.raises(ValueError, match=r"weights of 'transformer\.h\.0\.ln_1' are those of another module"):
            fold()
        assert torch.equal(run(model, x), before)
    assert torch.equal(run(model.unload(), x), expected)


@torch.no_grad()
def test_blocks_that_are_used_twice_are_steered_and_merged_as_one():
    base, x = randomize(build("gpt2")), ids()
    base.transformer.h[1] = base.transformer.h[0]
    model = get_peft_model(base, DSOConfig(init_weights=False)).eval()
    before = run(model, x, use_cache=False)
    torch.testing.assert_close(run(model.merge_and_unload(), x, use_cache=False), before, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_another_adapter_below_is_neither_passed_over_nor_lost():
    x = ids()
    tuned = get_peft_model(randomize(build("gpt2")), LNTuningConfig(target_modules=["ln_1", "ln_2"])).eval()
    randomize(tuned, seed=5)
    plain = run(tuned, x)
    model = get_peft_model(tuned.get_base_model(), DSOConfig(init_weights=False), adapter_name="s").eval()
    before = run(model, x)
    assert not torch.equal(before, plain)
    for change in (model.merge_adapter, model.merge_and_unload, model.unload):
        with pytest.raises(ValueError, match=r"another adapter \(LNTuningLayer\)"):
            change()
        assert torch.equal(run(model, x), before)
    model.set_steering_strength(0.0)
    assert torch.equal(run(model, x), plain)


@torch.no_grad()
def test_a_name_that_is_not_loaded_is_refused():
    model = get_peft_model(randomize(build("gpt2")), DSOConfig(init_weights=False), adapter_name="a").eval()
    model.add_adapter("b", DSOConfig(init_weights=False))
    x = ids()
    before = run(model, x)
    for merge in (model.merge_adapter, model.merge_and_unload):
        with pytest.raises(ValueError, match="no DSO adapter 'typo'. Loaded: a, b"):
            merge(adapter_names=["a", "typo"])
    assert torch.equal(run(model, x), before)


@pytest.mark.parametrize("kind", ["LlamaForSequenceClassification", "Qwen2ForTokenClassification"])
@torch.no_grad()
def test_what_is_no_causal_model_does_not_become_a_llama_for_causal_models(kind):
    model_class = getattr(transformers, kind)
    torch.manual_seed(0)
    base, x = randomize(model_class(model_class.config_class(**TEXT, num_labels=3)).eval()), ids()
    model = get_peft_model(copy.deepcopy(base), DSOConfig(init_weights=False)).eval()
    with pytest.raises(ValueError, match=f"has no home in a stock {kind}.*drop_shift=True"):
        fold_strength(model)
    folded = fold_strength(model, drop_shift=True)
    assert type(folded.model) is model_class and len(folded.dropped) == 4
    slopes = get_peft_model(base, DSOConfig(init_weights=False, learn_shift=False)).eval()
    torch.testing.assert_close(run(fold_strength(slopes).model, x), run(slopes, x), rtol=1e-4, atol=1e-5)
