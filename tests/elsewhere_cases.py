"""
What must hold on a device that is not the CPU (see elsewhere.py). Not collected with the other tests: test_devices.py
runs it in a process of its own.
"""

import copy

import numpy as np
import pytest
import torch
from elsewhere import ELSEWHERE, Elsewhere, a_device_elsewhere
from models import build, randomize
from peft import PeftModel, get_peft_model
from transformers import OlmoConfig, OlmoForCausalLM

import peft_dso
from peft_dso import DSOConfig, DSOLayer
from peft_dso.export import fold_strength
from peft_dso.objective import sparsity


@pytest.fixture(autouse=True)
def elsewhere():
    with a_device_elsewhere():
        yield


def ids(rows=3):
    return torch.randint(3, 64, (rows, 5), generator=torch.Generator().manual_seed(1))


def twins(name="llama", base=None, **config):
    """The same steered model here and elsewhere; the second was there before it got its adapter."""
    base = randomize(build(name)) if base is None else base
    torch.manual_seed(3)
    here = get_peft_model(copy.deepcopy(base), DSOConfig(init_weights=False, **config)).eval()
    there = get_peft_model(copy.deepcopy(base).to(ELSEWHERE), DSOConfig(init_weights=False, **config)).eval()
    there.load_state_dict({key: value.to(ELSEWHERE) for key, value in here.state_dict().items()})
    return here, there


def same(here, there, x=None, **kwargs):
    x = ids() if x is None else x
    with torch.no_grad():
        found = there(x.to(ELSEWHERE), **kwargs).logits
        assert isinstance(found, Elsewhere)
        torch.testing.assert_close(found.cpu(), here(x, **kwargs).logits)


def test_the_device_refuses_to_be_mixed():
    with pytest.raises(RuntimeError, match=r"elsewhere:0 and on cpu"):
        torch.ones(3).to(ELSEWHERE) + torch.ones(3)
    with pytest.raises(TypeError, match=r"elsewhere:0 cannot be float64"):
        torch.ones(3).to(ELSEWHERE).double()


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt"])
def test_strengths(name):
    here, there = twins(name)
    assert {t.device for m in there.modules() if isinstance(m, DSOLayer) for t in (*m.parameters(), *m.buffers())} == {
        ELSEWHERE
    }
    for strength in (0.5, [0.1, 0.2, 0.3], {r".*(ln_1|input_layernorm|self_attn_layer_norm)": [0.5, 0.0, 1.0]}):
        for model in (here, there):
            model.set_steering_strength(strength)
        same(here, there)
        assert there.get_steering_strength() == here.get_steering_strength()
    same(here, there, steering_strength=torch.tensor([0.3, 0.2, 0.1]))
    there.set_steering_strength(torch.tensor([0.3, 0.2, 0.1]).to(ELSEWHERE))
    assert there.get_steering_strength() == pytest.approx([0.3, 0.2, 0.1])
    here.set_steering_strength(torch.tensor([0.3, 0.2, 0.1]).to(ELSEWHERE))
    same(here, there, adapter_names=["default", "__base__", "default"])
    there.to("cpu").set_steering_strength(0.25)
    here.set_steering_strength(0.25)
    torch.testing.assert_close(there(ids()).logits, here(ids()).logits)


def test_generate():
    here, there = twins(task_type="CAUSAL_LM")
    options = dict(max_new_tokens=4, do_sample=False, pad_token_id=0, num_beams=2, steering_strength=[0.0, 0.5, 1.0])
    found = there.generate(
        input_ids=ids().to(ELSEWHERE), attention_mask=torch.ones_like(ids()).to(ELSEWHERE), **options
    )
    assert torch.equal(found.cpu(), here.generate(input_ids=ids(), attention_mask=torch.ones_like(ids()), **options))


def test_gradients_sparsity_and_pruning():
    here, there = twins()
    for model, x in ((here, ids()), (there, ids().to(ELSEWHERE))):
        model.train()(x).logits.square().sum().backward()
    for one, two in zip(here.parameters(), there.parameters(), strict=True):
        if one.requires_grad:
            torch.testing.assert_close(two.grad.cpu(), one.grad, rtol=1e-4, atol=1e-5)
    for model in (here, there):
        assert model.base_model.prune(0.5) == 32
    pairs = [
        [[*m.parameters()] for m in x.modules() if isinstance(m, peft_dso.tuner.DSOAffine)] for x in (here, there)
    ]
    assert sparsity(pairs[0]) == pytest.approx(sparsity(pairs[1])) and sparsity(pairs[0])[0] == 0.5


def test_merging_and_folding():
    here, there = twins("gpt2")
    for model in (here, there):
        model.merge_adapter(safe_merge=True)
    same(here, there)
    for model in (here, there):
        model.unmerge_adapter()
    folded = fold_strength(there).model(ids().to(ELSEWHERE)).logits
    torch.testing.assert_close(folded.cpu(), here(ids()).logits, rtol=1e-4, atol=1e-5)
    with there.disable_adapter():
        plain = fold_strength(there).model(ids().to(ELSEWHERE)).logits
    assert (plain - folded).abs().max().item() > 1e-4


def test_saving_and_loading(tmp_path):
    here, _ = twins(task_type="CAUSAL_LM")
    here.save_pretrained(tmp_path)
    for low_cpu_mem_usage in (False, True):
        base = randomize(build("llama")).to(ELSEWHERE)
        again = PeftModel.from_pretrained(base, tmp_path, torch_device="cpu", low_cpu_mem_usage=low_cpu_mem_usage)
        same(here, again)


def test_norms_without_weight():
    torch.manual_seed(0)
    base = OlmoForCausalLM(OlmoConfig(vocab_size=64, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
                                      num_attention_heads=2, pad_token_id=0, eos_token_id=2))  # fmt: skip
    same(*twins(base=base.eval()))


def test_a_sum_of_adapters():
    here, there = twins()
    for model in (here, there):
        model.base_model.add_weighted_adapter(["default"], [0.5], "sum")
        model.set_adapter("sum")
    same(here, there)


@pytest.mark.parametrize("packed", [True, False])
def test_scoring(packed):
    from peft_dso.scoring import EncodedQuestion, input_device, reads_tries, score

    here, there = twins()
    forms = (((9,), (9, 10, 11)), ((10, 11), (9, 10)))  # some begin others: leaving the trie is read too
    questions = [EncodedQuestion((5, 6, 7, last), forms, abstentions=((12, 13),)) for last in range(20, 24)]
    assert input_device(there) == ELSEWHERE
    assert reads_tries(there, questions) == reads_tries(here, questions)
    for (_, found), (_, expected) in zip(
        score(there, questions, packed=packed), score(here, questions, packed=packed), strict=True
    ):
        assert isinstance(found.answers, Elsewhere) and isinstance(found.decision, Elsewhere)
        for name in ("answers", "abstentions", "decision"):
            torch.testing.assert_close(getattr(found, name).cpu(), getattr(expected, name))


def test_asking_at_strengths():
    from peft_dso.evaluation.asking import ask
    from peft_dso.scoring import EncodedQuestion

    here, there = twins()
    questions = [EncodedQuestion((5, 6, last), (((9,),), ((10, 11),)), abstentions=((12, 13),)) for last in (20, 21)]
    found, expected = (ask(model, questions, [0.5, 1.0]) for model in (there, here))
    for strength, said in expected.items():
        for name in ("answers", "abstained", "kl"):
            np.testing.assert_allclose(getattr(found[strength], name), getattr(said, name), rtol=1e-4, atol=1e-6)
