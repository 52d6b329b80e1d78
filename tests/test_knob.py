"""What a sweep turns, on adapters of PEFT's own methods."""

import contextlib

import numpy as np
import pytest
import torch
from models import build, randomize, tiny_questions, tiny_tokenizer
from peft import (
    AdaLoraConfig,
    IA3Config,
    KasaConfig,
    LoHaConfig,
    LoraConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from trainers import RIGHT, leaning

from peft_dso import DSOConfig
from peft_dso.evaluation import (
    AdapterScaling,
    AdapterSwitch,
    BareModel,
    DSOStrength,
    Prompting,
    calibrate_strength,
    knob_of,
    save_report,
    sweep,
)
from peft_dso.evaluation.asking import answer_log_probs
from peft_dso.scoring import encode_row


ROWS = tiny_questions()
IDS = torch.tensor([[7, 8, 9, 10], [11, 5, 6, 9]])


def adapted(config, base="llama"):
    """A model with an adapter of some size, and the base alone."""
    torch.manual_seed(1)
    model = get_peft_model(randomize(build(base)), config).eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model, randomize(build(base)).eval()


@torch.no_grad()
def logits(model):
    return model(IDS).logits


LORA = dict(task_type="CAUSAL_LM", target_modules=["q_proj", "down_proj"], r=4)


@pytest.mark.parametrize(
    "more", [{}, {"use_rslora": True}, {"lora_bias": True}, {"target_modules": ["q_proj", "embed_tokens"]}]
)
def test_the_scaling_of_a_lora(more):
    """At w the weights are W + w scaling B A, computed here by merging; at 0 the base bit for bit."""
    model, base = adapted(LoraConfig(**{**LORA, **more}))
    knob = knob_of(model)
    assert isinstance(knob, AdapterScaling) and knob.name == "LORA"
    full = logits(model)
    for w in (0.0, 0.4, 1.0, 2.0, -1.0):
        with knob.at(w):
            turned = logits(model)
        other, _ = adapted(LoraConfig(**{**LORA, **more}))
        for module in other.modules():
            if hasattr(module, "lora_A"):
                for table in (module.lora_B, module.lora_embedding_B):
                    for name in table:
                        weight = table[name]
                        for p in [weight] if isinstance(weight, torch.nn.Parameter) else weight.parameters():
                            p.data *= w
        assert torch.allclose(turned, logits(other), atol=1e-5), w
        if w == 0:
            assert torch.equal(turned, logits(base))
    assert torch.equal(logits(model), full)


def test_what_is_trained_stays_so_and_scaling_is_restored_after_an_error():
    model, _ = adapted(LoraConfig(**LORA))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    full = logits(model)
    for w in (0.0, 0.5):
        with pytest.raises(RuntimeError, match="stop"), knob_of(model).at(w):
            raise RuntimeError("stop")
    assert torch.equal(logits(model), full)
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize(
    ("config", "why"),
    [
        (IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj"], feedforward_modules=[]), "IA3"),
        (LoHaConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]), "LOHA"),
        (PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PROMPT_TUNING"),
        (PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2), "PREFIX_TUNING"),
        (LoraConfig(**LORA, use_dora=True), "use_dora"),
        (LoraConfig(**LORA, modules_to_save=["lm_head"]), "modules_to_save"),
        (DSOConfig(init_weights=False, modules_to_save=["lm_head"]), "modules_to_save"),
    ],
)
def test_what_has_no_scaling_is_on_or_off(config, why):
    model, base = adapted(config)
    knob = knob_of(model)
    assert isinstance(knob, AdapterSwitch) and knob.strengths == (0, 1)
    full = logits(model)
    with knob.at(0):
        assert torch.equal(logits(model), logits(base))
    with knob.at(1):
        assert torch.equal(logits(model), full) and not torch.equal(full, logits(base))
    for w in (0.5, 2.0, float("nan")):
        with pytest.raises(ValueError, match=f"must be 0 or 1, got .*{why}"), knob.at(w):
            pass
    report = sweep(model, tiny_tokenizer(), {"a": ROWS})
    assert [r.strength for r in report.sets["a"]] == [0, 1]
    assert report.description["knob"] == config.peft_type.value
    with pytest.raises(ValueError, match="must be 0 or 1"):
        calibrate_strength(model, tiny_tokenizer(), ROWS, max_kl=0.1)


def test_a_sweep_of_a_soft_prompt_reads_what_the_model_says():
    """Virtual tokens stand before the prompt, where a trie has no place for them."""
    model, _ = adapted(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2))
    tokenizer = tiny_tokenizer()
    said, _ = answer_log_probs(model, [encode_row(tokenizer, row) for row in ROWS], (1.0,))
    for row, found in zip(ROWS, said[1.0], strict=True):
        with torch.no_grad():
            expected = model(**tokenizer(row["prompt"], return_tensors="pt")).logits[0, -1].log_softmax(-1)
        ids = tokenizer.convert_tokens_to_ids([a.strip() for a in row["answers"]])
        assert np.allclose(found, expected[ids], atol=1e-4)


def test_the_scaling_of_other_kinds_of_lora():
    config = AdaLoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], total_step=10)
    model, base = adapted(config)
    knob = knob_of(model)
    assert isinstance(knob, AdapterScaling)
    with knob.at(1e-6):
        assert torch.allclose(logits(model), logits(base), atol=1e-4)


@pytest.mark.parametrize(
    "more",
    [
        {"bias": "all"},
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": "olora"},
        {"layer_replication": [[0, 2], [1, 2]]},
        {"kasa_config": KasaConfig()},
    ],
)
def test_an_adapter_without_its_base_is_refused(more):
    model, base = adapted(LoraConfig(**LORA, **more))
    with model.disable_adapter():
        assert "bias" in more or not torch.allclose(logits(model), logits(base), atol=1e-4)
    with pytest.raises(ValueError, match="changes the base's own weights"):
        knob_of(model)
    assert sweep(model, tiny_tokenizer(), {"a": ROWS}, knob=BareModel()).sets["a"][0].strength == 0


def test_adapters_that_are_merged_or_off_are_refused():
    for config in (LoraConfig(**LORA), DSOConfig(learn_shift=False)):
        model, _ = adapted(config)
        model.base_model.merge_adapter()
        with pytest.raises(ValueError, match="merged"):
            knob_of(model)
        model.base_model.unmerge_adapter()
        model.base_model.disable_adapter_layers()
        with pytest.raises(ValueError, match="switched off"):
            knob_of(model)


def test_the_knob_of_a_dso_adapter_and_of_a_plain_model():
    model = get_peft_model(leaning(), DSOConfig(init_weights=False))
    assert isinstance(knob_of(model), DSOStrength)
    model.base_model.set_adapter([])
    with pytest.raises(ValueError, match="No DSO adapter is active"):
        knob_of(model)
    assert isinstance(knob_of(build("llama")), BareModel)


def test_a_plain_model_with_a_loaded_adapter(tmp_path):
    model, base = adapted(LoraConfig(**LORA))
    model.save_pretrained(tmp_path)
    plain = randomize(build("llama")).eval()
    plain.load_adapter(str(tmp_path))
    assert torch.equal(logits(plain), logits(model))
    knob = knob_of(plain)
    assert isinstance(knob, AdapterScaling)
    with knob.at(0):
        assert torch.equal(logits(plain), logits(base))
    with knob.at(0.5), knob_of(model).at(0.5):
        assert torch.equal(logits(plain), logits(model))


def test_a_sweep_of_a_lora_and_of_the_base():
    model, base = adapted(LoraConfig(**LORA))
    tokenizer = tiny_tokenizer()
    report = sweep(model, tokenizer, {"a": ROWS + RIGHT}, (0, 1))
    alone = sweep(base, tokenizer, {"a": ROWS + RIGHT})
    assert report.description["knob"] == "LORA" and alone.description["knob"] == "base"
    (only,) = alone.sets["a"]
    for key, measure in only.measures.items():
        assert measure == report.sets["a"][0].measures[key], key
    assert report.sets["a"][1].measures["kl"].value > 1e-3
    with pytest.raises(ValueError, match="must be 0, got 1.0: the model has no adapter"):
        sweep(base, tokenizer, {"a": ROWS}, (0.0, 1.0))
    found = calibrate_strength(model, tokenizer, ROWS, max_kl=report.sets["a"][1].measures["kl"].value / 2)
    assert 0 < found.strength < 1


def preamble(row):
    return {**row, "prompt": "When a man left , " + row["prompt"]}


def test_a_prompt():
    """Against the base without it: the KL is that of two prompts."""
    base, tokenizer = randomize(leaning()).eval(), tiny_tokenizer()
    knob = Prompting(preamble, "preamble")
    found = sweep(base, tokenizer, {"a": ROWS}, knob=knob)
    assert [r.strength for r in found.sets["a"]] == [0, 1] and found.description["knob"] == "preamble"
    kl, mass = [], []
    for row in ROWS:
        with torch.no_grad():
            p, q = (
                base(**tokenizer(r["prompt"], return_tensors="pt")).logits[0, -1].double().log_softmax(-1)
                for r in (preamble(row), row)
            )
        kl.append(float((p.exp() * (p - q)).sum()))
        mass.append(float(p.exp()[tokenizer.convert_tokens_to_ids(["he", "she"])].sum()))
    without, with_it = found.sets["a"]
    assert without.measures["kl"].value == 0
    assert with_it.measures["kl"].value == pytest.approx(np.mean(kl), rel=1e-4)
    assert with_it.measures["abstention"].value == pytest.approx(1 - np.mean(mass), abs=1e-5)
    texts = sweep(base, tokenizer, {"a": ROWS}, knob=knob, answers="text", max_new_tokens=2)
    prompted = [preamble(row) for row in ROWS]
    alone = sweep(base, tokenizer, {"a": prompted}, answers="text", max_new_tokens=2).sets["a"][0]
    assert texts.sets["a"][1].measures["abstention"] == alone.measures["abstention"]


def test_prompts_change_prompts_alone():
    base, tokenizer = leaning(), tiny_tokenizer()
    swapped = Prompting(lambda row: {**row, "meanings": row["meanings"][::-1]}, "swap")
    with pytest.raises(ValueError, match="swap turns the meanings"):
        sweep(base, tokenizer, {"a": ROWS}, knob=swapped)
    with pytest.raises(ValueError, match="a prompt is there or not"):
        sweep(base, tokenizer, {"a": ROWS}, (0.5,), knob=swapped)
    turned = Prompting(lambda row: row["answers"].reverse() or row, "turn")
    with pytest.raises(ValueError, match="turn turns the answers"):
        sweep(base, tokenizer, {"a": ROWS}, knob=turned)
    with pytest.raises(ValueError, match="nothing turns question 0 into None: a rewriting returns a row"):
        sweep(base, tokenizer, {"a": ROWS}, knob=Prompting(lambda row: None, "nothing"))


def test_a_rewriting_may_edit_the_row_that_it_is_given():
    base, tokenizer = randomize(leaning()).eval(), tiny_tokenizer()
    rows = [dict(row) for row in ROWS]

    def edit(row):
        row["prompt"] = preamble(row)["prompt"]
        return row

    edited, plain = (sweep(base, tokenizer, {"a": rows}, knob=Prompting(f, "p")).sets["a"] for f in (edit, preamble))
    assert rows == ROWS and edited == plain


def test_strengths_are_numbers(tmp_path):
    model, _ = adapted(DSOConfig(init_weights=False, task_type="CAUSAL_LM"))
    report = sweep(model, tiny_tokenizer(), {"a": ROWS}, [np.float32(0), torch.tensor(0.5), np.int64(1)])
    save_report(report, tmp_path / "report.json")
    assert [type(r.strength) for r in report.sets["a"]] == [float] * 3
    drawn = sweep(model, tiny_tokenizer(), {"a": ROWS}, (w / 2 for w in range(3)))
    assert drawn.sets == report.sets
    for wrong in (["a"], [None], 0.5, "01", [float("nan")]):
        with pytest.raises(ValueError, match="finite numbers"):
            sweep(model, tiny_tokenizer(), {"a": ROWS}, wrong)


class Nameless:
    def at(self, strength):
        return contextlib.nullcontext()


class Returning(Nameless):
    name = "returning"

    def at(self, strength):
        return None


@pytest.mark.parametrize(
    "knob, said",
    [(Nameless(), "Nameless is no knob: it needs a name"), (3, "int is no knob"), (Returning(), r"at\(0\)")],
)
def test_what_is_no_knob_is_refused(knob, said):
    with pytest.raises(TypeError, match=said):
        sweep(randomize(build("llama")), tiny_tokenizer(), {"tiny": ROWS}, (0.0, 1.0), knob=knob)
