"""Models of every kind: `score` gives what single passes give, or refuses before anything is scored."""

import accelerate
import pytest
import torch
import transformers as tf
from models import GPT2, TEXT, build, randomize
from test_scoring import by_hand

from peft_dso.scoring import (
    EncodedQuestion,
    check_readable,
    evaluating,
    input_device,
    positions_limit,
    reads_tries,
    score,
)


SMALL = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
ATTENTION = dict(intermediate_size=48, num_attention_heads=4, num_key_value_heads=2)
QWEN2 = dict(**SMALL, **ATTENTION, model_type="qwen2", max_position_embeddings=128)
LINEAR = dict(
    linear_num_key_heads=2, linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8, num_experts=4,
    num_experts_per_tok=2, moe_intermediate_size=16, shared_expert_intermediate_size=16,
)  # fmt: skip
# name: (model, whether it reads tries)
KINDS = {
    # a recurrent state, or linear attention
    "mamba": (lambda: tf.MambaForCausalLM(tf.MambaConfig(**SMALL, state_size=8)), False),
    "mamba2": (
        lambda: tf.Mamba2ForCausalLM(
            tf.Mamba2Config(**SMALL, num_heads=8, head_dim=8, expand=2, state_size=8, n_groups=1, chunk_size=8)
        ),
        False,
    ),
    "falcon_h1": (
        lambda: tf.FalconH1ForCausalLM(
            tf.FalconH1Config(
                **SMALL, **ATTENTION, mamba_d_ssm=64, mamba_n_heads=8, mamba_d_head=8, mamba_n_groups=1,
                mamba_d_state=8, mamba_chunk_size=8,
            )
        ),
        False,
    ),
    "qwen3_next": (
        lambda: tf.Qwen3NextForCausalLM(
            tf.Qwen3NextConfig(
                **SMALL, **ATTENTION, **LINEAR, head_dim=8, layer_types=["linear_attention", "full_attention"]
            )
        ),
        False,
    ),
    "recurrent_gemma": (
        lambda: tf.RecurrentGemmaForCausalLM(
            tf.RecurrentGemmaConfig(
                **SMALL, **ATTENTION, lru_width=32, attention_window_size=32, block_types=["recurrent", "attention"]
            )
        ),
        False,
    ),
    "rwkv": (lambda: tf.RwkvForCausalLM(tf.RwkvConfig(**SMALL, attention_hidden_size=32, context_length=64)), False),
    # ALiBi
    "bloom": (lambda: tf.BloomForCausalLM(tf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)), False),
    "mpt": (
        lambda: tf.MptForCausalLM(tf.MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=64)),
        False,
    ),
    # learned and sinusoidal positions
    "gpt2": (lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**GPT2)), True),
    "gptj": (
        lambda: tf.GPTJForCausalLM(
            tf.GPTJConfig(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, rotary_dim=4)
        ),
        True,
    ),
    # a window that is shorter than the prompts, and one that is not
    "mistral": (lambda: tf.MistralForCausalLM(tf.MistralConfig(**{**TEXT, "sliding_window": 4})), False),
    # one that holds the prompt of ONE, and not its longest answer as well
    "narrow window": (lambda: tf.MistralForCausalLM(tf.MistralConfig(**{**TEXT, "sliding_window": 7})), False),
    "wide window": (lambda: tf.MistralForCausalLM(tf.MistralConfig(**{**TEXT, "sliding_window": 64})), True),
    # take logits_to_keep, and return all
    "qwen2_audio": (
        lambda: tf.Qwen2AudioForConditionalGeneration(
            tf.Qwen2AudioConfig(
                text_config=QWEN2,
                audio_config=dict(
                    model_type="qwen2_audio_encoder", d_model=32, encoder_layers=1, encoder_attention_heads=4,
                    encoder_ffn_dim=48, num_mel_bins=16, max_source_positions=32,
                ),
            )
        ),
        True,
    ),
    "video_llama_3": (
        lambda: tf.VideoLlama3ForConditionalGeneration(
            tf.VideoLlama3Config(
                text_config=QWEN2,
                vision_config=dict(
                    hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, patch_size=8
                ),
            )
        ),
        True,
    ),
}  # fmt: skip


def lively(make):
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return model


# One question whose answers part after their first token; then others, of other lengths, that begin alike.
ONE = [EncodedQuestion((5, 6, 7, 8, 9), (((20, 30, 31, 32),), ((21, 33, 31, 34), (21, 35))))]
SEVERAL = [
    *ONE,
    EncodedQuestion((5, 6, 7, 40), (((20,),), ((21, 33),))),
    EncodedQuestion((5, 41, 42, 43, 44, 45, 46, 47, 48), (((20, 23),), ((21, 33),))),
]


@pytest.mark.parametrize("name", sorted(KINDS))
def test_scores_are_those_of_single_passes(name):
    make, reads = KINDS[name]
    model = lively(make)
    for questions in (ONE, SEVERAL):
        found = reads_tries(model, questions)
        assert found == reads
        for packed in (None, False):
            for numbers, scores in score(model, questions, packed=packed):
                for row, number in enumerate(numbers):
                    values, decision = by_hand(model, questions[number])
                    assert scores.answers[row].tolist() == pytest.approx(values, abs=2e-3), (packed, number)
                    torch.testing.assert_close(scores.decision[row].double(), decision, rtol=1e-3, atol=2e-3)


@pytest.mark.parametrize("name", sorted(KINDS))
def test_half_precision_does_not_change_what_a_model_reads(name):
    make, reads = KINDS[name]
    assert reads_tries(lively(make).to(torch.bfloat16), SEVERAL) == reads


@pytest.mark.parametrize("size, reads", [(0.15, True), (1.0, False)])
def test_what_rounding_may_do_and_what_no_mask_does(size, reads):
    """Noise of the size that bfloat16 makes of real models' logits, and of that of a mask that is not honoured."""
    model = randomize(build("llama")).to(torch.bfloat16)

    def noisy(module, args, out):
        logits = out.logits.float()
        out.logits = logits + size * logits.std() * torch.randn(logits.shape, generator=generator)

    generator = torch.Generator().manual_seed(0)
    model.register_forward_hook(noisy)
    assert reads_tries(model, SEVERAL) == reads


def test_models_that_see_what_follows_are_refused_where_something_does():
    sizes = dict(vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4)
    model = lively(lambda: tf.BertLMHeadModel(tf.BertConfig(**sizes)))
    with pytest.raises(ValueError, match="BertLMHeadModel is no causal language model"):
        next(score(model, SEVERAL))
    assert not reads_tries(model, [EncodedQuestion((5, 6, 7), (((8,),), ((9,),)))])  # nothing follows the prompt
    decoder = lively(lambda: tf.BertLMHeadModel(tf.BertConfig(**sizes, is_decoder=True)))
    assert all(scores.answers.isfinite().any() for _, scores in score(decoder, SEVERAL))


def test_causality_is_tried_within_the_positions():
    """By a model that does not read tries, whose longest question just fits."""
    model = lively(lambda: tf.BartForCausalLM(tf.BartConfig(
        vocab_size=64, d_model=32, decoder_layers=2, decoder_attention_heads=4, decoder_ffn_dim=48,
        max_position_embeddings=40, is_decoder=True, is_encoder_decoder=False,
    )))  # fmt: skip
    longest = EncodedQuestion((5,) * 39, (((20, 21),), ((22, 23),)))
    assert not reads_tries(model, [longest])
    ((_, scores),) = score(model, [longest])
    assert scores.answers.isfinite().all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_activations_that_are_quantised_by_the_row_are_causal_enough():
    """What follows changes how they round, and little else."""
    model = lively(lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**TEXT)))
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    for (_, expected), (_, found) in zip(score(model, ONE, packed=False), score(quantised, ONE), strict=True):
        torch.testing.assert_close(found.answers, expected.answers, rtol=0.05, atol=0.2)


def test_encoder_decoders_are_refused():
    with pytest.raises(ValueError, match="T5ForConditionalGeneration is an encoder-decoder"):
        next(score(build("t5"), ONE))


@pytest.mark.parametrize(
    "name, limit",
    [("gpt2", 64), ("opt", 64), ("gptj", 64), ("mpt", 64), ("llama", None), ("bloom", None), ("mamba", None)],
)
def test_rows_longer_than_the_positions_are_refused_before_anything_is_scored(name, limit):
    model = lively(KINDS[name][0]) if name in KINDS else build(name)
    assert positions_limit(model) == limit
    # The last token of an answer is read and not written: 60 tokens and 4 more are 64 positions.
    longest = EncodedQuestion((5,) * 60, (((20,) * 5,), ((21,),)))
    assert all(scores.answers.isfinite().all() for _, scores in score(model, [*ONE, longest], packed=False))
    if limit is not None:
        longer = EncodedQuestion((5,) * 61, longest.answers)
        calls = []
        model.register_forward_pre_hook(lambda *_: calls.append(1))
        with pytest.raises(ValueError, match=r"Question 1 has 65 tokens .* positions for 64"):
            next(score(model, [*ONE, longer]))
        with pytest.raises(ValueError, match="65 tokens"):
            reads_tries(model, [*ONE, longer])
        assert not calls


def test_positions_that_are_spent_on_padding_are_not_counted():
    config = tf.RobertaConfig(
        vocab_size=64, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=34, pad_token_id=1, is_decoder=True,
    )  # fmt: skip
    model = tf.RobertaForCausalLM(config).eval()
    assert positions_limit(model) == 32
    model(torch.full((1, 32), 5))
    with pytest.raises((IndexError, RuntimeError)):
        model(torch.full((1, 33), 5))


def test_a_token_that_the_model_does_not_know_is_refused():
    with pytest.raises(ValueError, match="has the token 64, and LlamaForCausalLM knows 64 tokens"):
        check_readable(build("llama"), [EncodedQuestion((5, 64), (((20,),),))])


def test_the_callers_gradients_and_mode_are_its_own_while_scoring_is_suspended():
    model = randomize(build("gpt2")).train()
    model.transformer.h[0].eval()  # frozen by its owner
    modes = {name: module.training for name, module in model.named_modules()}
    running = score(model, SEVERAL, batch_tokens=8)
    for count, (_, scores) in enumerate(running):
        assert torch.is_grad_enabled() and not scores.answers.requires_grad
        assert {name: module.training for name, module in model.named_modules()} == modes
        model(torch.tensor([[5, 6]])).logits.sum().backward()
        if count == 1:
            break
    running.close()
    assert model.training and torch.is_grad_enabled()


def test_tries_are_tried_without_dropout_and_gradient_whatever_the_mode():
    model = randomize(build("gpt2")).train()  # dropout 0.1: packed and plain would differ
    seen = []
    model.register_forward_hook(lambda module, *_: seen.append((module.training, torch.is_grad_enabled())))
    assert reads_tries(model, ONE) and model.training and torch.is_grad_enabled()
    assert set(seen) == {(False, False)}
    assert not reads_tries(lively(KINDS["mamba2"][0]), [EncodedQuestion((5,), ())])  # nothing that branches
    with evaluating(model):
        assert not model.training


def test_offloaded_and_parted_models():
    model = randomize(build("llama"))
    ((_, expected),) = score(model, SEVERAL)
    assert input_device(model) == torch.device("cpu")
    offloaded = accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    assert next(offloaded.parameters()).is_meta and input_device(offloaded) == torch.device("cpu")
    ((_, found),) = score(offloaded, SEVERAL)
    torch.testing.assert_close(found.answers, expected.answers)
    # The first parameter is not always where the inputs belong.
    parted = build("llama")
    parted.model.embed_tokens.to("meta")
    parted.get_input_embeddings()._hf_hook = accelerate.hooks.SequentialHook(
        accelerate.hooks.ModelHook(), accelerate.hooks.AlignDevicesHook(execution_device=torch.device("cpu"))
    )
    assert input_device(parted) == torch.device("cpu")
