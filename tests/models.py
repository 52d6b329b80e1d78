"""Tiny models of many architectures, built from config: no network, no weights."""

import re

import torch
import transformers as tf
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace


TEXT = dict(
    vocab_size=64,
    hidden_size=16,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=64,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
)
GPT2 = dict(vocab_size=64, n_embd=16, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2)
OPT = dict(
    vocab_size=64, hidden_size=16, ffn_dim=32, num_hidden_layers=2, num_attention_heads=2, word_embed_proj_dim=16,
    max_position_embeddings=64, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
T5 = dict(
    vocab_size=64, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, pad_token_id=0, decoder_start_token_id=0
)
VISION = dict(
    hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
)

# name: (config class, its arguments, model class, norms of the blocks of the language backbone)
TEXT_MODELS = {
    "llama": (tf.LlamaConfig, TEXT, tf.LlamaForCausalLM, 4),
    "qwen2": (tf.Qwen2Config, TEXT, tf.Qwen2ForCausalLM, 4),
    "qwen3": (tf.Qwen3Config, {**TEXT, "head_dim": 8}, tf.Qwen3ForCausalLM, 4),
    "mistral": (tf.MistralConfig, TEXT, tf.MistralForCausalLM, 4),
    "gemma2": (tf.Gemma2Config, {**TEXT, "head_dim": 8}, tf.Gemma2ForCausalLM, 8),
    "gemma3": (tf.Gemma3TextConfig, {**TEXT, "head_dim": 8}, tf.Gemma3ForCausalLM, 8),
    "olmo2": (tf.Olmo2Config, TEXT, tf.Olmo2ForCausalLM, 4),
    "phi": (tf.PhiConfig, TEXT, tf.PhiForCausalLM, 2),
    "gpt2": (tf.GPT2Config, GPT2, tf.GPT2LMHeadModel, 4),
    "gpt_neox": (tf.GPTNeoXConfig, TEXT, tf.GPTNeoXForCausalLM, 4),
    "opt": (tf.OPTConfig, OPT, tf.OPTForCausalLM, 4),
    "falcon": (tf.FalconConfig, {**TEXT, "new_decoder_architecture": True}, tf.FalconForCausalLM, 4),
    "mixtral": (tf.MixtralConfig, {**TEXT, "num_local_experts": 2}, tf.MixtralForCausalLM, 4),
    "qwen3_moe": (
        tf.Qwen3MoeConfig,
        {**TEXT, "head_dim": 8, "num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
        tf.Qwen3MoeForCausalLM,
        4,
    ),
    "t5": (tf.T5Config, T5, tf.T5ForConditionalGeneration, 10),
}


def _qwen_vl(config_class, **vision):
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    return config_class(
        text_config={**TEXT, "head_dim": 8, "rope_parameters": rope},
        vision_config={
            "depth": 2,
            "num_heads": 2,
            "hidden_size": 16,
            "intermediate_size": 32,
            "patch_size": 8,
            **vision,
        },
    )


def _composite(config_class, text_class, text, vision_class, vision, **more):
    return config_class(text_config=text_class(**text), vision_config=vision_class(**vision), **more)


# name: (config, model class, norms of the blocks of the language backbone)
VISION_MODELS = {
    "qwen2_5_vl": (
        lambda: _qwen_vl(tf.Qwen2_5_VLConfig, out_hidden_size=16, fullatt_block_indexes=[1]),
        tf.Qwen2_5_VLForConditionalGeneration,
        4,
    ),
    "qwen3_vl": (
        lambda: _qwen_vl(
            tf.Qwen3VLConfig, out_hidden_size=16, deepstack_visual_indexes=[0], num_position_embeddings=16
        ),
        tf.Qwen3VLForConditionalGeneration,
        4,
    ),
    "gemma3": (
        lambda: _composite(
            tf.Gemma3Config,
            tf.Gemma3TextConfig,
            {**TEXT, "head_dim": 8},
            tf.SiglipVisionConfig,
            VISION,
            mm_tokens_per_image=4,
        ),
        tf.Gemma3ForConditionalGeneration,
        8,
    ),
    "llava": (
        lambda: _composite(tf.LlavaConfig, tf.LlamaConfig, TEXT, tf.CLIPVisionConfig, VISION),
        tf.LlavaForConditionalGeneration,
        4,
    ),
    "idefics3": (
        lambda: tf.Idefics3Config(text_config=tf.LlamaConfig(**TEXT), vision_config=VISION),
        tf.Idefics3ForConditionalGeneration,
        4,
    ),
    "smolvlm": (
        lambda: tf.SmolVLMConfig(text_config=tf.LlamaConfig(**TEXT), vision_config=VISION),
        tf.SmolVLMForConditionalGeneration,
        4,
    ),
    "mllama": (
        lambda: tf.MllamaConfig(
            text_config={**TEXT, "num_hidden_layers": 3, "cross_attention_layers": [1]},
            vision_config={
                **VISION,
                "attention_heads": 2,
                "num_global_layers": 1,
                "vision_output_dim": 32,
                "intermediate_layers_indices": [0],
                "supported_aspect_ratios": [[1, 1]],
                "max_num_tiles": 1,
            },
        ),
        tf.MllamaForConditionalGeneration,
        6,
    ),
}


def build(name, dtype=torch.float32, seed=0):
    """A tiny text model of an architecture, in evaluation mode."""
    config_class, arguments, model_class, _ = TEXT_MODELS[name]
    torch.manual_seed(seed)
    return model_class(config_class(**arguments)).to(dtype).eval()


def randomize(model, scale=0.3, seed=0):
    """Norms that differ from 1 and 0, so that a mistake with them shows."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def tokenizer_of(*texts):
    """A tokenizer that knows the words of some texts, each word one token; at most 64 tokens."""
    words = dict.fromkeys(word for text in texts for word in re.findall(r"\w+|[^\w\s]", text))
    tokenizer = Tokenizer(
        WordLevel({word: i for i, word in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}, "<unk>")
    )
    assert len(words) <= 60
    tokenizer.pre_tokenizer = Whitespace()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        padding_side="left",
    )


OCCUPATIONS = ("nurse", "driver", "farmer", "clerk")


def tiny_questions(
    occupations=OCCUPATIONS, frames=("The {o} said that", "The {o} who was late said that"), right=None
):
    """Questions about some occupations that the tokenizer of [`tiny_tokenizer`] knows."""
    rows = []
    for i, occupation in enumerate(occupations):
        for frame in frames:
            meanings = ["pro", "anti"] if i % 2 else ["anti", "pro"]
            rows.append({"prompt": frame.format(o=occupation), "occupation": occupation, "answers": [" he", " she"],
                         "meanings": meanings, "right": right})  # fmt: skip
    return rows


def tiny_tokenizer():
    """The tokenizer of [`tiny_questions`]."""
    return tokenizer_of(
        "The said that left because was late when a man woman who is , he she they . The", " ".join(OCCUPATIONS)
    )
