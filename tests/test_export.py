"""A steered model as a plain checkpoint: loaded by transformers alone, it is the same model."""

import json
import subprocess
import sys

import pytest
import torch
import transformers as tf
from models import TEXT, TEXT_MODELS, VISION_MODELS, build, randomize, tiny_tokenizer
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_peft_options import _int8, _nf4

from peft_dso import DSOConfig, cli
from peft_dso.export import export_checkpoint, fold_strength
from peft_dso.export.checkpoint import loader_name


PROMPTS = ("The nurse said that", "The driver left because he")
LAYER_NORMS = ("gpt2", "phi", "gpt_neox", "opt", "falcon")
AS_LLAMA = ("llama", "qwen2", "mistral")


def steered(name, dtype=torch.float32, strength=0.7, model=None, **config):
    base = randomize(build(name) if model is None else model)
    for parameter in base.parameters():  # as large as trained weights are, so that a shift shows in the logits
        parameter.data *= 8 if parameter.dim() == 2 else 1
    base = base.to(dtype)
    if name == "mistral":
        base.config.sliding_window = None
    torch.manual_seed(1)
    model = get_peft_model(base, DSOConfig(init_weights=False, task_type="CAUSAL_LM", **config)).eval()
    model.set_steering_strength(strength)
    return model


def logits(model, prompt="The nurse said that he"):
    ids = torch.tensor([tiny_tokenizer()(prompt)["input_ids"]])
    with torch.no_grad():
        return model(ids).logits


FRESH = """
import sys, torch
sys.modules["peft_dso"] = None  # an import would fail
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32).eval()
with torch.no_grad():
    torch.save([type(model).__name__, model(torch.tensor([[4, 5, 6, 7, 8]])).logits], sys.argv[2])
"""


@pytest.mark.parametrize("name", [*LAYER_NORMS, *AS_LLAMA])
def test_folded_is_steered(name):
    model = steered(name)
    before = {n: p.clone() for n, p in model.state_dict().items()}
    folded = fold_strength(model)
    assert not folded.dropped
    assert not any("dso" in n for n, _ in folded.model.named_modules())
    torch.testing.assert_close(logits(folded.model), logits(model), rtol=0, atol=1e-5)
    with model.disable_adapter():
        assert (logits(folded.model) - logits(model)).abs().max() > 1e-2
    after = model.state_dict()
    assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before)
    expected = tf.LlamaForCausalLM if name in AS_LLAMA else TEXT_MODELS[name][2]
    assert type(folded.model) is expected


@pytest.mark.parametrize("name", ["gpt2", "qwen2"])
def test_a_fresh_process_without_the_package_loads_it(tmp_path, name):
    model, tokenizer = steered(name), tiny_tokenizer()
    report = export_checkpoint(model, tokenizer, tmp_path / "out", prompts=PROMPTS)
    assert report.difference < 1e-5 and report.same_greedy == 2 and report.strength == 0.7
    assert {"config.json", "generation_config.json", "tokenizer.json", "README.md"} <= {
        p.name for p in (tmp_path / "out").iterdir()
    }
    card = (tmp_path / "out" / "README.md").read_text()
    assert report.lines()[1] in card and "2 of 2 prompts" in card
    run = subprocess.run(
        [sys.executable, "-c", FRESH, str(tmp_path / "out"), str(tmp_path / "logits.pt")],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    kind, found = torch.load(tmp_path / "logits.pt")
    with torch.no_grad():
        expected = model(torch.tensor([[4, 5, 6, 7, 8]])).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    assert kind == ("LlamaForCausalLM" if name == "qwen2" else "GPT2LMHeadModel")


def test_biases_are_the_plain_product():
    model = steered("llama", strength=0.5)
    layer = model.base_model.model.model.layers[1]
    shift = layer.post_attention_layernorm.dso_affine["default"].shift.double()
    folded = fold_strength(model).model
    expected = 0.5 * (layer.mlp.up_proj.weight.double() @ shift)
    torch.testing.assert_close(folded.model.layers[1].mlp.up_proj.bias.double(), expected, rtol=1e-5, atol=1e-7)
    assert folded.config.attention_bias and folded.config.mlp_bias
    assert not folded.model.layers[1].mlp.down_proj.bias.any()


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "olmo2"])
def test_a_shift_without_a_home_is_refused_or_dropped_with_its_cost(tmp_path, name):
    model = steered(name)
    with pytest.raises(ValueError, match=r"model\.layers\.0\..*no home.*drop_shift"):
        export_checkpoint(model, tiny_tokenizer(), tmp_path / "out", prompts=PROMPTS)
    assert not (tmp_path / "out").exists()
    report = export_checkpoint(model, tiny_tokenizer(), tmp_path / "out", prompts=PROMPTS, drop_shift=True)
    assert len(report.dropped) == TEXT_MODELS[name][3] and report.dropped_kl > 1e-5
    # The cost by hand.
    plain = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    costs = []
    for prompt in PROMPTS:
        p, q = (logits(m, prompt).double().log_softmax(-1) for m in (model, plain))
        costs.append((p.exp() * (p - q)).sum(-1).flatten())
    assert report.dropped_kl == pytest.approx(float(torch.cat(costs).mean()), rel=1e-3)
    assert "shifts left out" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize("name", ["qwen3", "gemma2", "mixtral"])
def test_slopes_alone_fold_everywhere(name):
    model = steered(name, learn_shift=False)
    torch.testing.assert_close(logits(fold_strength(model).model), logits(model), rtol=0, atol=1e-4)


def test_the_final_norm_has_no_home():
    model = steered("llama", target_modules=["norm", "input_layernorm"])
    with pytest.raises(ValueError, match=r"behind model\.norm has no home"):
        fold_strength(model)
    assert fold_strength(model, drop_shift=True).dropped == ["model.norm"]


def test_a_sliding_window_stays_what_it_is():
    base = tf.MistralForCausalLM(tf.MistralConfig(**TEXT, sliding_window=4)).eval()
    model = get_peft_model(base, DSOConfig(init_weights=False, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match="no home"):
        fold_strength(model)


def test_tied_embeddings_bfloat16_and_shards(tmp_path):
    torch.manual_seed(0)
    base = tf.Qwen2ForCausalLM(tf.Qwen2Config(**TEXT, tie_word_embeddings=True)).eval()
    model = steered("qwen2", torch.bfloat16, model=base)
    report = export_checkpoint(model, tiny_tokenizer(), tmp_path / "out", prompts=PROMPTS, max_shard_size="10KB")
    assert report.dtype == "bfloat16" and report.difference_saved >= report.difference > 0  # rounding, and it is said
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "bfloat16"
    found = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert found.lm_head.weight.data_ptr() == found.model.embed_tokens.weight.data_ptr()
    keys = {key for file in (tmp_path / "out").glob("*.safetensors") for key in load_file(file)}
    assert "lm_head.weight" not in keys
    torch.testing.assert_close(logits(found).float(), logits(model).float(), rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen2_5_vl"])
def test_vision_language_models(tmp_path, name):
    config, model_class, _ = VISION_MODELS[name]
    torch.manual_seed(0)
    base = model_class(config()).eval()
    model = steered(name, model=base, learn_shift=False)
    report = export_checkpoint(model, tiny_tokenizer(), tmp_path / "out", prompts=PROMPTS)
    assert report.loader == "AutoModelForImageTextToText" and report.difference < 1e-4 and report.same_greedy == 2
    assert report.loader in (tmp_path / "out" / "README.md").read_text() and report.loader in "".join(report.lines())
    found = tf.AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert type(found) is model_class
    torch.testing.assert_close(logits(found), logits(model), rtol=0, atol=1e-4)
    with model.disable_adapter():
        assert (logits(found) - logits(model)).abs().max() > 1e-3
    with pytest.raises(ValueError, match="no home"):
        export_checkpoint(steered(name, model=base), tiny_tokenizer(), tmp_path / "no", prompts=PROMPTS)
    assert not (tmp_path / "no").exists()


def test_what_fails_leaves_nothing(tmp_path):
    class Broken:
        def save_pretrained(self, folder):
            assert (folder / "config.json").is_file()  # the model was written before
            raise OSError("no space left")

    (tmp_path / "out").mkdir()
    with pytest.raises(OSError, match="no space left"):
        export_checkpoint(steered("gpt2"), Broken(), tmp_path / "out", prompts=PROMPTS)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]
    model = steered("gpt2")

    class Other(type(model.get_base_model())):  # loads what is not what was saved
        def __init__(self, config):
            config.layer_norm_epsilon = 10.0
            super().__init__(config)

    model.get_base_model().__class__ = Other
    with pytest.raises(ValueError, match="not the steered model"):
        export_checkpoint(model, tiny_tokenizer(), tmp_path / "out", prompts=PROMPTS)
    assert [path.name for path in tmp_path.rglob("*")] == ["out"]


def test_the_loader_of_each_kind():
    assert loader_name(build("gpt2")) == "AutoModelForCausalLM"
    assert loader_name(build("gemma3")) == "AutoModelForCausalLM"
    assert loader_name(build("t5")) == "AutoModelForSeq2SeqLM"
    assert loader_name(tf.GPT2ForSequenceClassification(build("gpt2").config)) == "GPT2ForSequenceClassification"


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
         "original_max_position_embeddings": 16},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [1.0, 2.0, 3.0, 4.0],
         "factor": 4.0, "original_max_position_embeddings": 16},
    ],
    ids=lambda rope: rope["rope_type"],
)  # fmt: skip
@pytest.mark.parametrize("name", AS_LLAMA)
def test_kinds_of_rope(name, rope):
    config_class, arguments, model_class, _ = TEXT_MODELS[name]
    torch.manual_seed(0)
    config = config_class(**arguments, rope_parameters={"rope_theta": 500.0, **rope})
    model = steered(name, model=model_class(config).eval())
    folded = fold_strength(model).model
    x = torch.randint(4, 60, (1, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(folded(x).logits, model(x).logits, rtol=0, atol=2e-5)
    assert folded.config.rope_parameters["rope_type"] == rope["rope_type"]


@pytest.mark.parametrize("kind", [_int8, _nf4])
def test_a_quantised_base_is_refused(tmp_path, kind):
    torch.manual_seed(0)
    base = tf.LlamaForCausalLM(tf.LlamaConfig(**{**TEXT, "hidden_size": 64, "intermediate_size": 128})).eval()
    base = kind(base)
    for learn_shift in (True, False):
        model = get_peft_model(base, DSOConfig(init_weights=False, learn_shift=learn_shift)).eval()
        with pytest.raises(ValueError, match="quantised"):
            export_checkpoint(model, tiny_tokenizer(), tmp_path / "out", prompts=PROMPTS)
        assert not (tmp_path / "out").exists()
        base = model.unload()


def test_refusals(tmp_path):
    model = steered("llama")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="not an empty folder"):
        export_checkpoint(model, tiny_tokenizer(), tmp_path / "full")
    with pytest.raises(ValueError, match="at least one prompt"):
        export_checkpoint(model, tiny_tokenizer(), tmp_path / "out", prompts=())
    model.set_steering_strength([0.1, 0.2])
    with pytest.raises(ValueError, match="per row"):
        fold_strength(model)
    with pytest.raises(ValueError, match="no DSO adapter"):
        fold_strength(build("llama"))
    merged = steered("gpt2")
    merged.merge_adapter()
    with pytest.raises(ValueError, match="merged"):
        fold_strength(merged)
    off = steered("llama")
    with off.disable_adapter(), pytest.raises(ValueError, match="switched off"):
        export_checkpoint(off, tiny_tokenizer(), tmp_path / "off")
    mixed = steered("llama")
    lora = get_peft_model(mixed.base_model.model, LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="plain linear|another kind"):
        fold_strength(lora)


def test_the_command(tmp_path, capsys):
    base = build("llama")
    base.save_pretrained(tmp_path / "base")
    tiny_tokenizer().save_pretrained(tmp_path / "base")
    model = steered("llama", model=tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base"))
    model.get_base_model()  # randomize() has changed the norms: save what is steered
    call = ["export", "--model", str(tmp_path / "base"), "--adapter", str(tmp_path / "adapter")]
    fresh = get_peft_model(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "base"),
                           DSOConfig(init_weights=False, task_type="CAUSAL_LM"))  # fmt: skip
    fresh.save_pretrained(tmp_path / "adapter")
    prompts = ["--prompt", PROMPTS[0], "--strength", "0.4"]
    assert cli.main([*call, *prompts, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "LlamaForCausalLM at strength 0.4" in said and "1 of 1 prompts" in said
    assert cli.main([*call, *prompts, "--out", str(tmp_path / "out")]) == 1
    assert "not an empty folder" in capsys.readouterr().err


def test_rotary_frequencies_stay_float32():
    model = get_peft_model(build("llama").to(torch.bfloat16), DSOConfig(task_type="CAUSAL_LM"))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".dso_affine." in name:
                parameter.normal_(0, 0.1)
    folded = fold_strength(model).model
    assert folded.dtype == torch.bfloat16
    assert {buffer.dtype for name, buffer in folded.named_buffers() if "inv_freq" in name} == {torch.float32}
