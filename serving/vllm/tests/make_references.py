"""
Makes tiny models, adapters for them, and what `peft_dso` itself generates with them, for the tests of the plug-in.

Run it in the environment of the package (the plug-in's own environment has another transformers):

    python serving/vllm/tests/make_references.py OUT [MODEL ...]

OUT/references.json holds for each model its folder, its adapters' folders, and cases of a prompt, strengths by
adapter, and the greedy tokens with their log-probabilities; for a model that sees, also cases of a text and a colour.
"""

import json
import sys
from pathlib import Path

import torch
import transformers as tf
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import peft_dso
from peft_dso.demo.model import load_smollm2, smollm2_folder


STRENGTHS = (-0.5, 0.0, 0.25, 0.4, 0.7, 1.0, 1.5)
TOKENS = 24
TEXTS = (
    "The nurse told the patient that",
    "Write one sentence about an engineer who met a secretary.",
    "What did the mechanic say to the librarian?",
)
SEEN = "t40 t50 t1 t60 t70 t80"  # t1 stands for the picture
COLOURS = ((255, 0, 0), (0, 40, 200))
TEXT = dict(
    vocab_size=128,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    max_position_embeddings=512,
    initializer_range=0.3,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=0,
)
MOE = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, head_dim=32)
GPT2 = dict(vocab_size=128, n_embd=64, n_layer=2, n_head=2, n_positions=512, bos_token_id=1, eos_token_id=2)
OPT = dict(vocab_size=128, hidden_size=64, ffn_dim=96, num_hidden_layers=2, num_attention_heads=2)
VISION = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=8,
    patch_size=4,
    projection_dim=32,
)
LLAVA = dict(text_config=tf.LlamaConfig(**TEXT), vision_config=tf.CLIPVisionConfig(**VISION), image_token_index=1)
MODELS = {
    "llama": (tf.LlamaConfig, {**TEXT, "num_hidden_layers": 4}, tf.LlamaForCausalLM),
    "qwen2": (tf.Qwen2Config, TEXT, tf.Qwen2ForCausalLM),
    "qwen3": (tf.Qwen3Config, {**TEXT, "head_dim": 32}, tf.Qwen3ForCausalLM),
    "mistral": (tf.MistralConfig, TEXT, tf.MistralForCausalLM),
    "gemma3": (tf.Gemma3TextConfig, {**TEXT, "head_dim": 32, "initializer_range": 0.05}, tf.Gemma3ForCausalLM),
    "qwen3_moe": (tf.Qwen3MoeConfig, {**TEXT, **MOE}, tf.Qwen3MoeForCausalLM),
    "gpt2": (tf.GPT2Config, {**GPT2, "initializer_range": 0.3}, tf.GPT2LMHeadModel),
    "opt": (
        tf.OPTConfig,
        {**OPT, "word_embed_proj_dim": 64, "max_position_embeddings": 512, "init_std": 0.3},
        tf.OPTForCausalLM,
    ),
    "gpt_neox": (tf.GPTNeoXConfig, TEXT, tf.GPTNeoXForCausalLM),
    "llava": (tf.LlavaConfig, LLAVA, tf.LlavaForConditionalGeneration),
}


def prompts(vocab_size: int, count: int = 11, first: int = 3) -> list[list[int]]:
    """Prompts of random tokens, each four longer than the one before."""
    generator = torch.Generator().manual_seed(first)
    return [torch.randint(3, vocab_size, (first + 4 * i,), generator=generator).tolist() for i in range(count)]


def save_adapter(model, folder: Path, seed: int, **config) -> str:
    """A random adapter, saved as the package saves it. Random and not trained: every site matters."""
    torch.manual_seed(seed)
    steered = get_peft_model(model, peft_dso.DSOConfig(task_type="CAUSAL_LM", init_weights=False, **config))
    steered.save_pretrained(folder)
    steered.unload()
    return str(folder)


def save_tokenizer(folder: Path, vocab_size: int) -> None:
    """A tokenizer whose words are "t0", "t1" and so on, with a chat template that marks the roles."""
    words = {f"t{i}": i for i in range(vocab_size)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="t3"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="t3", eos_token="t2", bos_token="t1", pad_token="t0"
    )
    fast.chat_template = (
        "{% for m in messages %}{{ 't4 ' if m.role == 'user' else 't5 ' }}{{ m.content }} {% endfor %}"
        "{% if add_generation_prompt %}t5{% endif %}"
    )
    fast.save_pretrained(folder)


def save_processor(folder: Path, config: tf.LlavaConfig) -> tf.LlavaProcessor:
    """A processor of pictures in which "t1" stands for one; the tower's weights get the names that vLLM reads."""
    save_tokenizer(folder, config.text_config.vocab_size)
    size = dict.fromkeys(("height", "width"), config.vision_config.image_size)
    processor = tf.LlavaProcessor(
        CLIPImageProcessorPil(size=size, do_center_crop=False, crop_size=size),
        tf.AutoTokenizer.from_pretrained(folder),
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="t1",
    )
    processor.save_pretrained(folder)
    file = folder / "model.safetensors"
    tensors = load_file(file)  # later versions of transformers leave out a part of the names
    renamed = {
        name if ".vision_model." in name else name.replace("vision_tower.", "vision_tower.vision_model."): tensor
        for name, tensor in tensors.items()
    }
    save_file(renamed, file, {"format": "pt"})
    return processor


def pictured_cases(steered, processor: tf.LlavaProcessor) -> list[dict]:
    """The package's generation behind a picture, in all strengths."""
    cases, rows = [], [{"fair": w} for w in STRENGTHS]
    for colour in COLOURS:
        size = processor.image_processor.size
        image = Image.new("RGB", (size["width"], size["height"]), colour)
        inputs = processor(text=SEEN, images=image, return_tensors="pt")
        pixels = inputs["pixel_values"].repeat(len(rows), 1, 1, 1)
        found = generate(steered, inputs["input_ids"][0].tolist(), rows, pixel_values=pixels)
        cases += [{**case, "text": SEEN, "colour": colour, "size": image.size} for case in found]
    return cases


def save_lora(model, folder: Path) -> str:
    """A LoRA that changes the model."""
    torch.manual_seed(5)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    lora = get_peft_model(model, config)
    lora.save_pretrained(folder)
    lora.unload()
    return str(folder)


@torch.no_grad()
def generate(model, prompt: list[int], rows: list[dict[str, float]], **more) -> list[dict]:
    """The package's own greedy generation for one prompt, a row per mapping of strengths."""
    for name in model.peft_config:
        if name in rows[0]:
            model.set_steering_strength([row[name] for row in rows], name)
    ids = torch.tensor([prompt] * len(rows))
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=TOKENS,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **more,
    )
    logprobs = torch.stack(output.logits, 1).log_softmax(-1)  # (rows, tokens, vocabulary)
    cases = []
    for row, tokens, scores in zip(rows, output.sequences[:, len(prompt) :], logprobs, strict=False):
        chosen = scores.gather(-1, tokens[:, None])[:, 0]
        best = scores.topk(2).values
        cases.append(
            {
                "prompt": prompt,
                "strengths": row,
                "tokens": tokens.tolist(),
                "logprobs": [round(x, 7) for x in chosen.tolist()],
                "margin": round(float((best[:, 0] - best[:, 1]).min()), 7),
            }
        )
    return cases


def build(name: str, out: Path) -> dict:
    """One model with its adapters and cases."""
    config_class, arguments, model_class = MODELS[name]
    torch.manual_seed(1)
    model = model_class(config_class(**arguments)).eval()
    model.generation_config = tf.GenerationConfig()
    folder = out / name / "model"
    model.save_pretrained(folder)
    entry = {"model": str(folder), "adapters": {}, "cases": []}
    entry["adapters"]["fair"] = save_adapter(model, out / name / "fair", 2)
    if name == "llama":
        save_tokenizer(folder, model.config.vocab_size)
        entry["adapters"]["other"] = save_adapter(model, out / name / "other", 3, layers_to_transform=[1, 2])
        entry["adapters"]["slopes"] = save_adapter(model, out / name / "slopes", 4, learn_shift=False)
        layered = {"layers.0": 0.2, r"layers\.[12]": 0.7}
        entry["adapters"]["layered"] = save_adapter(model, out / name / "layered", 6, steering_strength=layered)
        entry["lora"] = save_lora(model, out / name / "lora")
    processor = save_processor(folder, model.config) if name == "llava" else None
    steered = PeftModel.from_pretrained(model, entry["adapters"]["fair"], adapter_name="fair")
    if processor is not None:
        entry["pictured"] = pictured_cases(steered, processor)
    vocab_size = model.config.get_text_config().vocab_size
    questions = prompts(vocab_size)
    for prompt in questions if name == "llama" else questions[:4]:
        entry["cases"] += generate(steered, prompt, [{"fair": w} for w in STRENGTHS])
    if name == "llama":
        (long,) = prompts(vocab_size, 1, first=130)
        entry["long"] = generate(steered, long, [{"fair": w} for w in (0.0, 0.4, 1.0)])
        entry |= llama_extras(steered, entry, questions)
    return entry


def llama_extras(steered, entry: dict, questions: list[list[int]]) -> dict:
    """Mixtures of adapters, strengths by layer, and a LoRA beside the steering."""
    extras = {"mixed": [], "layered": [], "with_lora": []}
    steered.load_adapter(entry["adapters"]["other"], "other")
    steered.base_model.set_adapter(["fair", "other"])
    rows = [{"fair": 0.4, "other": 0.0}, {"fair": 0.0, "other": 1.0}, {"fair": 0.7, "other": -0.5}]
    for prompt in questions[:5]:
        extras["mixed"] += generate(steered, prompt, rows)
    steered.load_adapter(entry["adapters"]["layered"], "layered")
    steered.base_model.set_adapter("layered")
    for prompt in questions[:3]:
        extras["layered"] += generate(steered, prompt, [{}])
    model = steered.unload()
    lora = PeftModel.from_pretrained(model, entry["lora"], adapter_name="lora").merge_and_unload()
    both = PeftModel.from_pretrained(lora, entry["adapters"]["fair"], adapter_name="fair")
    for prompt in questions[:3]:
        extras["with_lora"] += generate(both, prompt, [{"fair": w} for w in (0.0, 0.4, 1.0)])
    return extras


def build_smollm2(out: Path) -> dict:
    """SmolLM2 with the adapter that comes along with the package: a trained model and a trained adapter."""
    model, tokenizer = load_smollm2()
    adapter = str(Path(peft_dso.__file__).parent / "demo" / "adapter")
    steered = PeftModel.from_pretrained(model, adapter, adapter_name="fair")
    cases = []
    for text in TEXTS:
        turns = [{"role": "user", "content": text}]
        prompt = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        cases += generate(steered, prompt, [{"fair": w} for w in STRENGTHS])
    return {"model": str(smollm2_folder()), "adapters": {"fair": adapter}, "cases": cases}


def main() -> None:
    out = Path(sys.argv[1]).absolute()
    out.mkdir(parents=True, exist_ok=True)
    names = sys.argv[2:] or [*MODELS, "smollm2"]
    path = out / "references.json"
    references = json.loads(path.read_text()) if path.exists() else {}
    for name in names:
        try:
            references[name] = build_smollm2(out) if name == "smollm2" else build(name, out)
        except ImportError as error:
            print(name, "is left out:", error, flush=True)
            continue
        cases = references[name]["cases"]
        print(name, len(cases), "cases, smallest margin", min(case["margin"] for case in cases), flush=True)
    path.write_text(json.dumps(references))


if __name__ == "__main__":
    main()
