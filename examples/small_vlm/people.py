"""The pictures of the example, the questions about them, and the stereotype that is planted."""

import math
import random

from PIL import Image, ImageDraw

from peft_dso.questions import Occupation, image_pair_questions
from peft_dso.questions.image_pairs import side_by_side


SIDE = 48  # of a picture of two people, in pixels
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
