"""Where CAA's shift of the residual stream can be written, and where it cannot."""

import numpy as np
import pytest
import torch
import transformers as tf
from compared import PARTS
from fitting import ROWS, TOKENIZER, heard, model_of, texts, token_ids
from models import GPT2, TEXT, randomize

from peft_dso.baselines import encode_text, fit_caa
from peft_dso.baselines.comparison import compare
from peft_dso.baselines.places import residual_writer


MEANT = ("pro", "anti")
SAID = encode_text(TOKENIZER, ROWS[0], " he")


def granite():
    """What its blocks add is scaled: a shift of what writes last arrives at 0.22 of itself."""
    torch.manual_seed(0)
    config = tf.GraniteConfig(**TEXT, residual_multiplier=0.22, embedding_multiplier=12.0)
    return tf.GraniteForCausalLM(config).eval()


def with_a_large_feature(model, dtype):
    """One that is large everywhere, as real models have them: its rounding is more than what is tried elsewhere."""
    model.get_input_embeddings().weight.data[:, 3] = 30
    return model.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: model_of("mixtral"), lambda: model_of("qwen3_moe"), granite])
def test_what_is_no_residual_writer_is_refused(make, dtype):
    """The experts of a mixture write last, and are no linear layer; the attention's output also goes through them."""
    model = with_a_large_feature(make(), dtype)
    with pytest.raises(ValueError, match="residual stream"):
        residual_writer(model, "model.layers.0", SAID)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "name, place", [("llama", "mlp.down_proj"), ("gemma2", "post_feedforward_layernorm"), ("qwen3", "mlp.down_proj")]
)
def test_the_place_is_the_same_in_half_precision(name, place, dtype):
    model = with_a_large_feature(model_of(name), dtype)
    before = [parameter.clone() for parameter in model.parameters()]
    assert residual_writer(model, "model.layers.1", SAID) == f"model.layers.1.{place}"
    assert all(torch.equal(*both) and both[0].dtype == dtype for both in zip(before, model.parameters(), strict=True))


def openai_gpt():
    torch.manual_seed(0)
    return randomize(tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(**GPT2)).eval())


def test_a_block_that_returns_a_list():
    """Its last norm writes what the next block reads: the shift arrives as it is."""
    plain, fitted = openai_gpt(), fit_caa(openai_gpt(), TOKENIZER, ROWS, variant="residual", layer=0)
    said = {meaning: [heard(plain, plain.transformer.h[0], ids)[-1] for ids in texts(meaning)] for meaning in MEANT}
    vector = np.mean(said["anti"], 0) - np.mean(said["pro"], 0)
    ids = token_ids("The driver said that")
    moved = heard(fitted, fitted.base_model.model.transformer.h[0], ids) - heard(plain, plain.transformer.h[0], ids)
    np.testing.assert_allclose(moved, np.tile(vector, (ids.shape[1], 1)), atol=2e-5)


def test_a_comparison_says_how_to_leave_it_out(tmp_path):
    with pytest.raises(
        ValueError, match=r"Without that caa-residual cannot be had; .*--methods dso,caa,iti,.*,prompting\."
    ):
        compare(lambda: (model_of("qwen3_moe"), TOKENIZER), PARTS, tmp_path / "out", ["caa", "caa-residual"])
    assert not (tmp_path / "out").exists()
