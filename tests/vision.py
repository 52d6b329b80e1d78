"""Tiny vision-language models with processors of their real classes, built without downloads."""

import re

import torch
import transformers as tf
from models import TEXT, VISION, VISION_MODELS
from PIL import Image
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from peft_dso.questions import Occupation, image_pair_questions


WORDS = re.findall(
    r"\w+|[^\w\s]",
    "The picture shows person A on the left and B right first second Who is nurse driver clerk farmer or Answer with "
    "letter only , . ? : USER ASSISTANT",
)
TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}IMAGE {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
OCCUPATIONS = [Occupation("nurse", 90), Occupation("driver", 6)]


def tokenizer_with(special):
    words = ["<pad>", "<s>", "</s>", "<unk>", *special, *dict.fromkeys(WORDS)]
    assert len(words) <= 64
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    inner.pre_tokenizer = Sequence([WhitespaceSplit(), Split(Regex(r"[,.?:]"), "isolated")])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=list(special), padding_side="left",
    )  # fmt: skip


class QwenProcessor(tf.Qwen2_5_VLProcessor):
    """The real class without its video half, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        if argument_name == "video_processor":
            return None
        return super().check_argument_for_proper_class(argument_name, argument)


def qwen():
    special = ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    tokenizer = tokenizer_with(special)
    images = Qwen2VLImageProcessorPil(
        patch_size=8, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 1024}
    )
    template = TEMPLATE.replace("IMAGE", "<|vision_start|><|image_pad|><|vision_end|>")
    processor = QwenProcessor(images, tokenizer, video_processor=None, chat_template=template)
    make, model_class, _ = VISION_MODELS["qwen2_5_vl"]
    config = make()
    ids = [tokenizer.convert_tokens_to_ids(token) for token in special]
    config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id = ids
    return model_class, config, processor


def gemma():
    special = ("<image_soft_token>", "<start_of_image>", "<end_of_image>")
    tokenizer = tokenizer_with(special)
    tokenizer.image_token, tokenizer.boi_token, tokenizer.eoi_token = special
    for name, token in zip(("image_token_id", "boi_token_id", "eoi_token_id"), special, strict=False):
        setattr(tokenizer, name, tokenizer.convert_tokens_to_ids(token))
    images = Gemma3ImageProcessorPil(size={"height": 16, "width": 16})
    template = TEMPLATE.replace("IMAGE", "<start_of_image>")
    processor = tf.Gemma3Processor(images, tokenizer, chat_template=template, image_seq_length=4)
    make, model_class, _ = VISION_MODELS["gemma3"]
    config = make()
    config.image_token_id, config.boi_token_id, config.eoi_token_id = (
        tokenizer.convert_tokens_to_ids(t) for t in special
    )
    config.image_token_index = config.image_token_id
    return model_class, config, processor


def llava():
    tokenizer = tokenizer_with(("<image>",))
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size=size, do_center_crop=False, crop_size=size)
    processor = tf.LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=TEMPLATE.replace("IMAGE", "<image>"),
    )  # fmt: skip
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**{**TEXT, "max_position_embeddings": 128}),
        vision_config=tf.CLIPVisionConfig(**VISION),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
    )
    return tf.LlavaForConditionalGeneration, config, processor


class PaliGemmaProcessor(tf.PaliGemmaProcessor):
    """The real class without its image processor's fast half, which needs torchvision."""

    def check_argument_for_proper_class(self, argument_name, argument):
        return None


def paligemma():
    """It reads a picture and a prompt at once, what follows it token by token."""
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    images.image_seq_length = 4
    tokenizer = tokenizer_with(("<image>",))
    processor = PaliGemmaProcessor(images, tokenizer, chat_template=TEMPLATE.replace("IMAGE", "<image>"))
    text = {**TEXT, "head_dim": 8, "vocab_size": len(tokenizer), "max_position_embeddings": 128}
    config = tf.PaliGemmaConfig(
        text_config=tf.Gemma2Config(**text), vision_config=tf.SiglipVisionConfig(**VISION), projection_dim=16,
        image_token_id=processor.image_token_id,
    )  # fmt: skip
    return tf.PaliGemmaForConditionalGeneration, config, processor


KINDS = {"qwen2_5_vl": qwen, "gemma3": gemma, "llava": llava}


def build_vision(name, seed=0):
    model_class, config, processor = {**KINDS, "paligemma": paligemma}[name]()
    torch.manual_seed(seed)
    return model_class(config).eval(), processor


def people():
    return [
        {
            "image": Image.new("RGB", (16 + 8 * i, 20 + 4 * j), (90 * i, 90 * j, 40)),
            "occupation": occupation,
            "gender": g,
        }
        for i, occupation in enumerate(("nurse", "driver"))
        for j, g in enumerate(("male", "female"))
    ]


def picture_questions(one_picture=False, ambiguous=True, count=8):
    return image_pair_questions(people(), OCCUPATIONS, ambiguous=ambiguous, count=count, one_picture=one_picture)
