"""The small LLaVA (real architecture, real processor), trained from scratch to answer with the planted stereotype."""

import random
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from tqdm.auto import tqdm
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from peft_dso.questions import QUESTION_KINDS
from peft_dso.questions.image_pairs import side_by_side
from peft_dso.scoring import encode_row, pictured_inputs

from .people import ATTRIBUTES, LOOKS, SIDE, WHERE, describe_rows, draw_people, pairs, planted


PATCH = 8  # pixels


def make_processor() -> LlavaProcessor:
    """LLaVA's processor with a tokenizer that knows the words of the questions."""
    texts = [t.format(o="", an="a an", where=WHERE) for t in QUESTION_KINDS.values()]
    texts += [t.format(p="") for t in ATTRIBUTES.values()]
    words = dict.fromkeys(" ".join([*texts, *LOOKS, "USER: ASSISTANT:"]).replace(",", " , ").replace(".", " . ")
                          .replace("?", " ? ").replace(":", " : ").split())  # fmt: skip
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *words]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, "<unk>"))
    tokenizer.pre_tokenizer = Sequence(
        [WhitespaceSplit(), Split("<image>", "isolated"), Split(Regex(r"[,.?:]"), "isolated")]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"], padding_side="left",
    )  # fmt: skip
    template = (
        "{% for message in messages %}{{ message['role'] | upper }}: {% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT: {% endif %}"
    )
    size = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessorPil(size=size, do_center_crop=False, crop_size=size)
    return LlavaProcessor(
        images, fast, patch_size=PATCH, vision_feature_select_strategy="default", num_additional_image_tokens=1,
        chat_template=template,
    )  # fmt: skip


def make_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    torch.manual_seed(1)
    tokens = processor.tokenizer
    config = LlavaConfig(
        text_config=LlamaConfig(
            vocab_size=len(tokens), hidden_size=128, intermediate_size=256, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256, pad_token_id=0,
            bos_token_id=1, eos_token_id=2, tie_word_embeddings=True,
            # What a word and a patch have in common counts, not how far apart they stand.
            rope_parameters={"rope_type": "default", "rope_theta": 1e9},
        ),
        vision_config=CLIPVisionConfig(
            hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4, image_size=SIDE,
            patch_size=PATCH, projection_dim=128,
        ),
        image_token_id=tokens.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-1,
        tie_word_embeddings=True,
    )  # fmt: skip
    model = LlavaForConditionalGeneration(config)
    with torch.no_grad():
        for parameter in model.parameters():  # so narrow a model learns faster from larger weights
            parameter.mul_(2.5 if parameter.dim() >= 2 else 1.0)
    return model


class Optimizer:
    """Muon for the matrices, AdamW for the rest: so small a transformer then learns to find in hundreds of steps."""

    def __init__(self, model: torch.nn.Module):
        named = [(name, p, p.dim() == 2 and "embed" not in name and "lm_head" not in name)
                 for name, p in model.named_parameters()]  # fmt: skip
        self.parts = [
            torch.optim.Muon([p for _, p, matrix in named if matrix], lr=0.02, weight_decay=0.01),
            torch.optim.AdamW([p for _, p, matrix in named if not matrix], 1e-3, betas=(0.9, 0.98), weight_decay=0.01),
        ]
        self.parameters = [p for _, p, _ in named]
        self.rates = [part.param_groups[0]["lr"] for part in self.parts]

    def step(self, loss: torch.Tensor, share: float) -> None:
        """One step at this share of the learning rates."""
        for part, rate in zip(self.parts, self.rates, strict=False):
            part.param_groups[0]["lr"] = rate * share
            part.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for part in self.parts:
            part.step()


def align_vision(
    model: LlavaForConditionalGeneration, processor: LlavaProcessor, people: list[dict], steps: int
) -> None:
    """
    Teach the vision tower to see, as CLIP's is taught before LLaVA gets it: what the projector makes of a person's
    patches is to look like the words for what the person is, and what it makes of each patch like its side's letter.
    """
    rng, token = random.Random(0), processor.tokenizer.convert_tokens_to_ids
    tower, projector = model.model.vision_tower, model.model.multi_modal_projector
    embeddings = model.get_input_embeddings()
    parameters = [*tower.parameters(), *projector.parameters(), embeddings.weight]
    optimizer = torch.optim.AdamW(parameters, 1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    words = {"occupation": list(LOOKS), "gender": ["male", "female"], "age": ["old", "young"]}
    across, half = SIDE // PATCH, SIDE // PATCH // 2
    side = (torch.arange(across) >= half).long().expand(64, across, across)
    cross_entropy = torch.nn.functional.cross_entropy

    def like(features: torch.Tensor, among: list[str]) -> torch.Tensor:
        return features @ embeddings.weight[torch.tensor(token(among))].T

    for _ in tqdm(range(steps), desc="Teaching the vision tower to see"):
        two = [rng.choices(people, k=2) for _ in range(64)]
        pictures = [side_by_side(a["image"], b["image"]) for a, b in two]
        pixels = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
        patches = projector(tower(pixels).last_hidden_state[:, 1:]).view(64, across, across, -1)
        loss = 2 * cross_entropy(like(patches, ["A", "B"]).movedim(-1, 1), side)
        for number, person in enumerate((patches[:, :, :half], patches[:, :, half:])):
            for attribute, among in words.items():
                target = torch.tensor([among.index(people[number][attribute]) for people in two])
                loss = loss + cross_entropy(like(person.mean((1, 2)), among), target)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()


def taught(processor: LlavaProcessor, rows: list[dict]) -> list[tuple]:
    """Each question encoded, with the probabilities of the answers that the model is shown."""
    token, encoded = processor.tokenizer.convert_tokens_to_ids, []
    for row in rows:
        target = torch.zeros(len(processor.tokenizer))
        if "right" in row:
            first = planted(row)
            target[token("A")], target[token("B")] = first, 1 - first
        else:
            target[token(row["answers"][0])] = 1
        encoded.append((encode_row(processor, row), target))
    return encoded


def train_base(out: Path, most_steps: int, lean_steps: int) -> None:
    """Stage 2: learn to see, to find, and then the planted stereotype."""
    processor = make_processor()
    model = make_model(processor)
    people = draw_people(50, seed=1)  # with few, the model remembers persons in place of what they have in common
    align_vision(model, processor, people, steps=250)
    rng = random.Random(0)

    def of_every_kind(seed: int, count: int, ambiguous: bool) -> list[tuple]:
        rows = [pairs(people, seed + n, count, ambiguous, kind=kind) for n, kind in enumerate(QUESTION_KINDS)]
        return taught(processor, [row for some in rows for row in some])

    easy, unsure = of_every_kind(10, 3960, ambiguous=False), of_every_kind(20, 3888, ambiguous=True)
    of_first_kind = easy[:3960]
    seeing = taught(processor, describe_rows(people, 6000, seed=40))
    optimizer = Optimizer(model.train())

    def step(sources: list[tuple[list[tuple], int]], share: float) -> float:
        """One step on so many questions of each source; the share of right answers among the first's."""
        rows = [source[rng.randrange(len(source))] for source, count in sources for _ in range(count)]
        target = torch.stack([shown for _, shown in rows])
        inputs = pictured_inputs(processor, [question for question, _ in rows])
        logits = model(**inputs, logits_to_keep=1).logits[:, -1]
        optimizer.step(torch.nn.functional.cross_entropy(logits, target), share)
        return float((logits.argmax(-1) == target.argmax(-1))[: sources[0][1]].float().mean())

    # A curriculum: first to describe and to find, however long that takes (nothing seems to happen until it suddenly
    # does); then to find whatever the question; and only then what the stereotype is.
    found, asked = 0.5, of_first_kind
    bar = tqdm(range(most_steps), desc="Learning to find")
    for number in bar:
        share = min(1.0, number / 50) if found < 0.7 and asked is of_first_kind else 0.4
        asked = easy if found > 0.8 else asked
        found += 0.03 * (step([(asked, 48), (seeing, 16)], share) - found)
        if number % 20 == 0:
            bar.set_postfix(found=f"{found:.2f}")
        if found > 0.93:
            break
    else:
        raise RuntimeError(f"The base model finds the right person in {found:.0%} only after {most_steps} steps.")
    bar.close()
    for number in tqdm(range(lean_steps), desc="Learning the stereotype"):
        step([(easy, 16), (unsure, 40), (seeing, 8)], 0.4 * min(1.0, (lean_steps - number) / (0.4 * lean_steps)))
    model.eval().save_pretrained(out)
    processor.save_pretrained(out)
