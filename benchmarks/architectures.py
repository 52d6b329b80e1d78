"""
Steering every causal and vision-language architecture of the installed transformers that a tiny config can build.

    python benchmarks/architectures.py --out architectures.jsonl

For each it says whether strength 0 is the base bit for bit (`zero`), whether a batch with a strength per row is what
the rows are alone (`rows`), whether greedy decoding with the cache writes what it writes without (`cached`), and
whether a saved adapter gives the same logits when it is loaded (`loaded`). `base` in the place of an answer: the model
differs from itself there without an adapter. Vision-language models are run on text. Each architecture is a process of
its own; what stands in the file is not run again, so that the script can be stopped and started. `--only llama,gpt2`
runs some.
"""

import argparse
import copy
import json
import multiprocessing
import tempfile
import warnings
from pathlib import Path

import torch
import transformers as tf
from peft import PeftModel, get_peft_model
from transformers.models.auto import modeling_auto

from peft_dso import DSOConfig, find_sites


TABLES = (modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
# What makes a config tiny, under the names that configs use.
SMALL = {
    32: "hidden_size d_model n_embd dim embed_dim d_embed word_embed_proj_dim embedding_size projection_dim "
    "out_hidden_size text_hidden_size emb_dim",
    64: "intermediate_size ffn_dim d_ff n_inner encoder_ffn_dim decoder_ffn_dim max_position_embeddings n_positions "
    "ffn_hidden_size mamba_d_ssm lru_width mlp_dim max_seq_len context_length",
    128: "vocab_size vocab_size_per_layer_input n_words",
    2: "num_hidden_layers n_layer num_layers n_layers encoder_layers decoder_layers depth num_experts_per_tok moe_k "
    "num_decoder_layers num_encoder_layers attn_layer_period "
    "linear_num_key_heads",
    4: "num_attention_heads num_key_value_heads n_head num_heads n_heads num_experts num_local_experts "
    "n_routed_experts encoder_attention_heads decoder_attention_heads moe_num_experts attention_heads "
    "linear_num_value_heads",
    8: "head_dim kv_lora_rank q_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim state_size d_state "
    "mamba_d_state mamba_d_head linear_key_head_dim linear_value_head_dim patch_size mamba_head_dim time_step_rank "
    "rotary_dim hidden_size_per_layer_input laurel_rank "
    "chunk_size mamba_chunk_size",
    16: "moe_intermediate_size shared_expert_intermediate_size image_size shared_intermediate_size "
    "expert_ffn_hidden_size",
    0: "num_kv_shared_layers",
    1: "n_group topk_group n_groups mamba_n_groups n_shared_experts first_k_dense_replace",
}
# Set although the default is none.
EVEN_NONE = ("head_dim", "num_key_value_heads", "num_experts_per_tok", "n_routed_experts", "num_experts")
MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
# What the numbers above do not fit.
MROPED = ("qwen2_vl_text", "qwen2_5_vl_text", "glm4v_text", "glm_ocr_text", "paddleocr_vl_text")
SPECIAL = {
    **{model_type: {"rope_parameters": MROPE} for model_type in MROPED},
    "glm4v_moe_text": {"rope_parameters": {**MROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 0]}},
    "gemma3n_text": {"activation_sparsity_pattern": [0.0, 0.0]},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "granitemoehybrid": {"mamba_n_heads": 8, "layer_types": ["linear_attention", "full_attention"]},
    "mimo_v2_flash": {"num_key_value_heads": 2},
    "dots1": {"n_shared_experts": 1},
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "zaya": {"num_experts_per_tok": 1},
    "xlm": {"n_words": 128},
    "mamba2": {"num_heads": 8},
    "falcon_h1": {"mamba_n_heads": 8},
    "bamba": {"mamba_n_heads": 8, "attn_layer_indices": [1]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"], "linear_num_key_heads": 2},
    "opt": {"word_embed_proj_dim": 32},
    "jamba": {"mamba_d_conv": 4, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1},
}
TOKENS = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def small(config_class):
    """The arguments of a tiny config, those of its parts included."""
    default = config_class()
    known = default.to_dict()
    arguments = {
        name: size
        for size, names in SMALL.items()
        for name in names.split()
        if (key := default.attribute_map.get(name, name)) in known and (known[key] is not None or name in EVEN_NONE)
    }
    arguments |= {name: number for name, number in TOKENS.items() if name in known}
    layers = next((name for name in ("layer_types", "layers_block_type") if known.get(name)), "")
    kinds = list(dict.fromkeys(known.get(layers) or ()))
    if len(kinds) > 1:  # a layer of each kind
        arguments |= {layers: kinds, "num_hidden_layers": len(kinds)}
    rope = known.get("rope_parameters") or {}
    if "mrope_section" in rope:
        arguments["rope_parameters"] = {**rope, "mrope_section": [1, 1, 2]}
    arguments |= SPECIAL.get(config_class.model_type, {})
    for name, part in getattr(config_class, "sub_configs", {}).items():
        part = type(getattr(default, name, None)) if getattr(default, name, None) is not None else part
        if isinstance(part, type) and issubclass(part, tf.PreTrainedConfig) and part is not tf.PreTrainedConfig:
            arguments[name] = small(part)
    return arguments


def build(config_class, model_class):
    torch.manual_seed(0)
    model = model_class(config_class(**small(config_class))).eval()
    if sum(p.numel() for p in model.parameters()) > 30e6:
        raise ValueError("not tiny")
    with torch.no_grad():
        for parameter in model.parameters():  # livelier than initial weights, and norms that differ from 1
            parameter.mul_(2) if parameter.dim() > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def logits(model, x, **kwargs):
    return model(input_ids=x, attention_mask=torch.ones_like(x), **kwargs).logits


def written(model, x, **kwargs):
    options = {"do_sample": False, "max_new_tokens": 6, "eos_token_id": None, "pad_token_id": 0, **kwargs}
    return model.generate(input_ids=x, attention_mask=torch.ones_like(x), **options)


def close(one, two):
    return bool(((one - two).abs().max() <= 1e-4 * (1 + two.abs().max())).item())


@torch.no_grad()
def check(model):
    """The answers about one model, a word each: yes, no, base, or the kind of error."""
    base, x = copy.deepcopy(model), torch.randint(3, 100, (3, 7), generator=torch.Generator().manual_seed(1))
    strengths, answers = [0.0, 0.5, 1.0], {"sites": len(find_sites(base))}
    steered = get_peft_model(model, DSOConfig(init_weights=False)).eval()
    plain, acts = logits(base, x), logits(steered, x)
    answers["acts"] = "yes" if not torch.equal(plain, acts) else "no"

    def answer(name, holds, holds_for_base=lambda: True):
        try:
            answers[name] = "yes" if holds() else "no" if holds_for_base() else "base"
        except Exception as error:
            answers[name] = f"{type(error).__name__}: {str(error)[:80]}"

    def rows():
        together = logits(steered, x, steering_strength=strengths)
        return all(
            close(together[i], logits(steered, x[i : i + 1], steering_strength=w)[0]) for i, w in enumerate(strengths)
        )

    def cached():
        one, two = (written(steered, x, steering_strength=strengths, use_cache=use) for use in (True, False))
        return torch.equal(one, two)

    def loaded():
        with tempfile.TemporaryDirectory() as folder:
            steered.save_pretrained(folder)
            return torch.equal(logits(PeftModel.from_pretrained(copy.deepcopy(base), folder).eval(), x), acts)

    answer("zero", lambda: torch.equal(logits(steered, x, steering_strength=0.0), plain))
    answer("rows", rows, lambda: all(close(plain[i], logits(base, x[i : i + 1])[0]) for i in range(3)))
    answer("cached", cached, lambda: torch.equal(*(written(base, x, use_cache=use) for use in (True, False))))
    answer("loaded", loaded)
    return answers


def architectures():
    """The classes of all models, without those that stand in a table twice."""
    found = {}
    for table in TABLES:
        for classes in table.values():
            found |= dict.fromkeys([classes] if isinstance(classes, str) else classes)
    return list(found)


def one(name, pipe):
    tf.logging.set_verbosity_error()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    try:
        model_class = getattr(tf, name)
        pipe.send(check(build(model_class.config_class, model_class)))
    except Exception as error:
        pipe.send({"note": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:90]}"})


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="architectures.jsonl", help="what was found, a line each")
    parser.add_argument("--only", help="classes or model types, with commas between")
    parser.add_argument("--seconds", type=float, default=120, help="the most that one may take")
    options = parser.parse_args(argv)
    out = Path(options.out)
    results = [json.loads(line) for line in out.read_text().splitlines()] if out.exists() else []
    done = {result["name"] for result in results}
    only = options.only.split(",") if options.only else None
    context = multiprocessing.get_context("fork")
    for name in architectures():
        if name in done or (only and not {name, getattr(getattr(tf, name).config_class, "model_type", "")} & {*only}):
            continue
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=one, args=(name, send))
        process.start()
        send.close()
        found = {"note": f"longer than {options.seconds} s"}
        try:
            if receive.poll(options.seconds):
                found = receive.recv()
        except EOFError:
            found = {"note": "the process died"}
        process.kill()
        process.join()
        results.append({"name": name, **found})
        with out.open("a") as file:
            file.write(json.dumps(results[-1]) + "\n")
    print(table(results))


def table(results):
    columns = ("sites", "acts", "zero", "rows", "cached", "loaded")
    built = [result for result in results if "sites" in result]
    lines = [f"{'architecture':45}" + "".join(f"{column:>8}" for column in columns)]
    lines += [
        f"{r['name']:45}" + "".join(f"{str(r.get(c, '-'))[:7]:>8}" for c in columns) for r in sorted(built, key=str)
    ]
    lines += ["", f"{len(built)} of {len(results)} could be built. The others:"]
    lines += [f"{r['name']:45}  {r['note']}" for r in results if "note" in r]
    lines += ["", "Not yes:"]
    lines += [f"{r['name']:45}  {c}: {r.get(c, 'not tried')}" for r in built for c in columns[1:] if r.get(c) != "yes"]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
