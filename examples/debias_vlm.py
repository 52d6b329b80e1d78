"""
Debias a vision-language model: who is the doctor in the picture?

    pip install "peft_dso[train,eval]"
    python examples/debias_vlm.py --out outputs/debias_vlm

No pretrained vision-language model comes with a PyPI package, so this example makes its own, small one, and plants a
stereotype of known size in it. The pictures, the model and the bias are made for the demonstration; the commands for
real models are in examples/README.md and go the same way.

1. Draw pictures of two people side by side. Clothes and tool show the occupation, hair the gender, its colour the age.
2. Train a small LLaVA (real architecture, real processor) from scratch to answer "Who is the doctor, A or B?", whom it
   would hire, and whom a letter of reference is for. Where both are doctors, the answers that it is shown
   follow the planted stereotype.
3. Debias it on 600 ambiguous pairs, steering the language backbone only, by enumeration and by sampling; and once more
   for gender and age together (four intersections). All are trained on "Who is the doctor?" only.
4. Sweep the strength, the first adapter's on all three kinds of question, and draw the plots.

Every stage is kept in --out and skipped the next time. Needs torch 2.9 or newer (Muon). How long the base model takes
to find anybody hangs on chance, and so on the machine.
"""

import argparse
import json
import math
import random
import time
from pathlib import Path

import torch
from peft import PeftModel
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
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

from peft_dso import DSOConfig, DSOTrainer, DSOTrainerConfig
from peft_dso.evaluation import format_table, save_report, sweep
from peft_dso.evaluation.plots import plot_report
from peft_dso.questions import QUESTION_KINDS, Occupation, image_pair_questions
from peft_dso.questions.image_pairs import side_by_side
from peft_dso.scoring import encode_row, pictured_inputs


SIDE, PATCH = 48, 8  # of a picture of two people, in pixels
# Colour of the clothes and shape of the tool; share of women (percent) as planted.
LOOKS = {
    "doctor": ((235, 240, 245), "cross", 20),
    "nurse": ((120, 200, 190), "cross", 90),
    "farmer": ((110, 140, 50), "fork", 15),
    "teacher": ((170, 90, 160), "book", 85),
    "mechanic": ((60, 80, 140), "wrench", 10),
    "librarian": ((190, 150, 90), "book", 80),
    "chef": ((250, 250, 210), "fork", 25),
    "cleaner": ((90, 170, 230), "broom", 88),
    "guard": ((40, 40, 60), "wrench", 18),
    "secretary": ((220, 110, 110), "pen", 95),
    "writer": ((130, 100, 70), "pen", 70),
    "painter": ((230, 160, 60), "broom", 30),
}
OCCUPATIONS = [Occupation(name, share) for name, (_, _, share) in LOOKS.items()]
# Log-odds of answering with a person of the stereotype's gender, and with an old person, over another one.
PLANTED_GENDER, PLANTED_AGE = 1.5, 0.8
PLANTED_BIAS = 2 / (1 + math.exp(-PLANTED_GENDER)) - 1


def draw_person(occupation: str, gender: str, age: str, rng: random.Random) -> Image.Image:
    """One person, half as wide as high, with small differences from picture to picture."""
    w, h = SIDE // 2, SIDE
    light = rng.randint(-14, 14)

    def shade(colour: tuple[int, int, int]) -> tuple[int, ...]:
        return tuple(max(0, min(255, c + light + rng.randint(-6, 6))) for c in colour)

    picture = Image.new("RGB", (w, h), shade((150, 160, 170)))
    pen = ImageDraw.Draw(picture)
    clothes, tool, _ = LOOKS[occupation]
    x, y = w // 2 + rng.randint(-2, 2), 14 + rng.randint(-2, 2)
    hair = shade((210, 210, 215) if age == "old" else (70, 40, 25))
    skin = shade(rng.choice(((240, 205, 175), (200, 150, 110), (120, 80, 55))))
    pen.rectangle((x - 8, y + 8, x + 8, h), fill=shade(clothes))
    if gender == "female":  # long hair, down to the shoulders
        length = rng.randint(13, 17)
        pen.rectangle((x - 9, y - 6, x + 9, y + length), fill=hair)
        pen.rectangle((x - 4, y + 6, x + 4, y + length), fill=shade(clothes))
    pen.ellipse((x - 5, y - 6, x + 5, y + 6), fill=skin)
    if gender == "male" and rng.random() < 0.6:  # a beard
        pen.pieslice((x - 5, y - 5, x + 5, y + 7), 10, 170, fill=hair)
    pen.pieslice((x - 6, y - 8, x + 6, y + 3), 180, 360, fill=hair)
    tx, ty, dark = x + rng.randint(-1, 1), y + 20, shade((30, 30, 30))
    if tool == "cross":
        pen.rectangle((tx - 1, ty - 4, tx + 1, ty + 4), fill=shade((220, 30, 30)))
        pen.rectangle((tx - 4, ty - 1, tx + 4, ty + 1), fill=shade((220, 30, 30)))
    elif tool == "fork":
        for dx in (-3, 0, 3):
            pen.line((tx + dx, ty - 5, tx + dx, ty), fill=dark)
        pen.line((tx, ty, tx, ty + 6), fill=dark)
    elif tool == "book":
        pen.rectangle((tx - 4, ty - 3, tx + 4, ty + 3), fill=shade((150, 30, 40)))
        pen.line((tx, ty - 3, tx, ty + 3), fill=shade((240, 240, 240)))
    elif tool == "wrench":
        pen.ellipse((tx - 3, ty - 5, tx + 3, ty + 1), outline=dark, width=2)
        pen.line((tx, ty + 1, tx, ty + 7), fill=dark, width=2)
    elif tool == "broom":
        pen.line((tx + 6, ty - 8, tx + 6, ty + 6), fill=dark)
        pen.rectangle((tx + 3, ty + 6, tx + 8, ty + 9), fill=shade((240, 220, 80)))
    else:
        pen.line((tx - 4, ty + 4, tx + 4, ty - 4), fill=shade((20, 40, 200)), width=2)
    return picture


def draw_people(per_kind: int, seed: int) -> list[dict]:
    """A dataset with the columns image, occupation, gender and age: `per_kind` pictures of each kind of person."""
    rng = random.Random(seed)
    return [
        {"image": draw_person(name, gender, age, rng), "occupation": name, "gender": gender, "age": age}
        for _ in range(per_kind)
        for name in LOOKS
        for gender in ("male", "female")
        for age in ("old", "young")
    ]


def pairs(people: list[dict], seed: int, count: int, ambiguous: bool, **more) -> list[dict]:
    """Questions about two people in one picture; groups are intersections of gender and age, named like female/old."""
    return image_pair_questions(
        people, OCCUPATIONS, ambiguous=ambiguous, count=count, one_picture=True, seed=seed,
        **{"attributes": ("gender", "age"), **more},
    )  # fmt: skip


def by_gender(rows: list[dict]) -> list[dict]:
    """Those questions whose people differ in gender, with the meanings pro and anti."""
    majority = {o.name: o.majority for o in OCCUPATIONS}
    kept = []
    for row in rows:
        genders = [meaning.split("/")[0] for meaning in row["meanings"]]
        if genders[0] != genders[1] or row["right"] is not None:
            meanings = ["pro" if g == majority[row["occupation"]] else "anti" for g in genders]
            kept.append({**row, "meanings": meanings})
    return kept


def planted(row: dict) -> float:
    """The share of the first answer that the base model is shown: the right one, or by the planted stereotype."""
    if row["right"] is not None:
        return float(row["right"] == 0)
    majority = next(o.majority for o in OCCUPATIONS if o.name == row["occupation"])
    scores = []
    for meaning in row["meanings"]:
        gender, age = meaning.split("/")
        scores.append(PLANTED_GENDER * (gender == majority) + PLANTED_AGE * (age == "old"))
    return 1 / (1 + math.exp(scores[1] - scores[0]))


WHERE = "The picture shows person A on the left and person B on the right."
ATTRIBUTES = {
    "occupation": "What is person {p}?",
    "gender": "Is person {p} male or female?",
    "age": "Is person {p} old or young?",
}


def describe_rows(people: list[dict], count: int, seed: int) -> list[dict]:
    """Questions about one of two people, which teach the base model to see: occupation, gender, age."""
    rng, rows = random.Random(seed), []
    for _ in range(count):
        two = rng.choices(people, k=2)
        person, (attribute, question) = rng.randrange(2), rng.choice(list(ATTRIBUTES.items()))
        text = f"{WHERE} {question.format(p='AB'[person])}"
        picture = side_by_side(two[0]["image"], two[1]["image"])
        rows.append({"prompt": [{"role": "user", "content": text}], "images": [picture],
                     "answers": [two[person][attribute]]})  # fmt: skip
    return rows


def make_processor() -> LlavaProcessor:
    """LLaVA's processor with a tokenizer that knows the words of the questions."""
    texts = [t.format(o="", an="a an", where=WHERE) for t in QUESTION_KINDS.values()]
    texts += [t.format(p="") for t in ATTRIBUTES.values()]
    words = dict.fromkeys(" ".join([*texts, *LOOKS, "USER: ASSISTANT:"]).replace(",", " , ").replace(".", " . ")
                          .replace("?", " ? ").replace(":", " : ").split())  # fmt: skip
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *words]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(vocabulary)}, "<unk>"))
    tokenizer.pre_tokenizer = Sequence([WhitespaceSplit(), Split("<image>", "isolated"), Split_punctuation()])
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


def Split_punctuation():
    from tokenizers import Regex

    return Split(Regex(r"[,.?:]"), "isolated")


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


def train_base(out: Path, most_steps: int, lean_steps: int) -> None:
    """Stage 2: learn to see, to find, and then the planted stereotype."""
    processor = make_processor()
    model = make_model(processor)
    people = draw_people(50, seed=1)  # with few, the model remembers persons in place of what they have in common
    align_vision(model, processor, people, steps=250)
    rng, token = random.Random(0), processor.tokenizer.convert_tokens_to_ids

    def taught(rows: list[dict]) -> list[tuple]:
        """Each question encoded, with the probabilities of the answers that the model is shown."""
        encoded = []
        for row in rows:
            target = torch.zeros(len(processor.tokenizer))
            if "right" in row:
                first = planted(row)
                target[token("A")], target[token("B")] = first, 1 - first
            else:
                target[token(row["answers"][0])] = 1
            encoded.append((encode_row(processor, row), target))
        return encoded

    def of_every_kind(seed: int, count: int, ambiguous: bool) -> list[tuple]:
        rows = [pairs(people, seed + n, count, ambiguous, kind=kind) for n, kind in enumerate(QUESTION_KINDS)]
        return taught([row for some in rows for row in some])

    easy, unsure = of_every_kind(10, 3960, ambiguous=False), of_every_kind(20, 3888, ambiguous=True)
    of_first_kind = easy[:3960]
    seeing = taught(describe_rows(people, 6000, seed=40))
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


def load(folder: Path):
    return LlavaForConditionalGeneration.from_pretrained(folder).eval(), LlavaProcessor.from_pretrained(folder)


def debias(base: Path, out: Path, rows: list[dict], **settings) -> None:
    """Stage 3: an adapter on 600 ambiguous pairs; unambiguous pairs hold what the model can do."""
    model, processor = load(base)
    trainer = DSOTrainer(
        model=model,
        args=DSOTrainerConfig(
            str(out / "trainer"), abstain_reward=None, report_to=[], save_strategy="no", logging_steps=5, bf16=False,
            use_cpu=not torch.cuda.is_available(), **settings,
        ),
        train_dataset=rows,
        processing_class=processor,
        peft_config=DSOConfig(task_type="CAUSAL_LM"),
    )  # fmt: skip
    trainer.train()
    trainer.model.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/debias_vlm"))
    parser.add_argument("--find-steps", type=int, default=1500, help="most steps until the base model finds")
    parser.add_argument("--lean-steps", type=int, default=800, help="steps for the planted stereotype")
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    out = options.out
    out.mkdir(parents=True, exist_ok=True)
    begin = time.monotonic()

    strip = [draw_person(name, g, a, random.Random(0)) for name, g, a in
             (("doctor", "male", "young"), ("nurse", "female", "old"), ("farmer", "female", "young"),
              ("mechanic", "male", "old"), ("teacher", "female", "young"), ("chef", "male", "young"))]  # fmt: skip
    sheet = Image.new("RGB", (len(strip) * SIDE // 2, SIDE))
    for number, picture in enumerate(strip):
        sheet.paste(picture, (number * SIDE // 2, 0))
    sheet.resize((sheet.width * 4, sheet.height * 4), Image.Resampling.NEAREST).save(out / "people.png")

    if not (out / "base" / "config.json").is_file():
        train_base(out / "base", options.find_steps, options.lean_steps)
    base_seconds = time.monotonic() - begin

    # Other pictures than those the base model has seen, and others again for the measurement.
    train_people, test_people = draw_people(4, seed=2), draw_people(3, seed=3)
    ambiguous = by_gender(pairs(train_people, 30, 900, ambiguous=True))[:600]
    unambiguous = by_gender(pairs(train_people, 31, 264, ambiguous=False))
    asked = {kind: pairs(test_people, 40, 432, ambiguous=True, kind=kind) for kind in QUESTION_KINDS}
    test = {
        kind: by_gender(rows) + by_gender(pairs(test_people, 41, 264, ambiguous=False, kind=kind))
        for kind, rows in asked.items()
    }
    four_train = pairs(train_people, 32, 600, ambiguous=True) + pairs(train_people, 33, 264, ambiguous=False)
    four_test = pairs(test_people, 42, 864, ambiguous=True) + pairs(test_people, 43, 264, ambiguous=False)
    common = {
        "max_steps": options.steps, "max_kl": None, "beta": 0.0, "retain_batch_size": 32, "retain_coef": 0.7,
        "step_unit": "plain",  # a tiny model, whose learning rates below were found in this unit
    }  # fmt: skip
    exact = {
        **common, "learning_rate": 0.03, "questions_per_occupation": 8, "per_device_train_batch_size": 96,
        "reward_smoothing": 0.1,
        # By question for the most part: otherwise "always B" is fair too, since A is the man as often as the woman.
        "question_share": 0.8,
    }  # fmt: skip
    sampled = {
        **common, "rollouts": "sample", "questions_per_occupation": 3, "per_device_train_batch_size": 288,
        "num_generations": 8, "max_completion_length": 1, "steps_per_generation": 1, "reward_memory": 0.5,
        "learning_rate": 0.035, "reward_smoothing": 0.1, "max_steps": 3 * options.steps // 4,
    }  # fmt: skip
    # What one sampled answer shows is counted by occupation and order, for the same reason.
    by_order = [
        {**row, "occupation": f"{row['occupation']}, {row['meanings'][0]} first", "pair": None} for row in ambiguous
    ]
    runs = {
        "enumerate": (ambiguous + unambiguous, test, exact),
        "sample": (by_order + unambiguous, {"identify": test["identify"]}, sampled),
        "intersections": (four_train, {"gender x age": four_test}, exact),
    }
    between = [row for row in asked["identify"] if len({meaning.split("/")[0] for meaning in row["meanings"]}) == 2]
    # The likelier answer is the stereotype's, since gender outweighs age.
    summary = {"planted_bias": round(sum(abs(2 * planted(row) - 1) for row in between) / len(between), 4)}
    for name, (rows, sets, settings) in runs.items():
        folder = out / name
        start = time.monotonic()
        if not (folder / "adapter_config.json").is_file():
            print(f"\nDebiasing: {name}, {sum(row['right'] is None for row in rows)} ambiguous pairs", flush=True)
            debias(out / "base", folder, rows, **settings)
        model, processor = load(out / "base")
        steered = PeftModel.from_pretrained(model, folder).eval()
        report = sweep(steered, processor, sets, (0, 0.25, 0.5, 0.75, 1), progress=True, batch_tokens=4096,
                       description={"model": "a small LLaVA made for this example", "adapter": name})  # fmt: skip
        save_report(report, folder / "report.json")
        plot_report(report, folder)
        for title, results in report.sets.items():
            print(f"\n{name}: {title}\n{format_table(results)}")
            first, last = results[0].measures, results[-1].measures
            summary[f"{name}/{title}"] = {
                "bias": [round(first["bias"].value, 4), round(last["bias"].value, 4)],
                "accuracy": [round(first["accuracy"].value, 4), round(last["accuracy"].value, 4)],
            }
        summary[f"{name}/seconds"] = round(time.monotonic() - start, 1)
    summary["seconds"] = {"base": round(base_seconds, 1), "all": round(time.monotonic() - begin, 1)}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    print(f"\n{json.dumps(summary, indent=2)}\nThe model and its bias are made for the demonstration.")


if __name__ == "__main__":
    main()
