"""What is compared in the tests of the comparison: a tiny model, questions and settings."""

from models import build, randomize, tiny_questions, tiny_tokenizer

from peft_dso.baselines.comparison import compare
from peft_dso.baselines.parts import Parts


TOKENIZER = tiny_tokenizer()


FRAMES = {
    "train": ("The {o} said that", "The {o} who was late said that"),
    "validation": ("The {o} left because",),
    "test": ("The {o} was late because", "When the {o} left ,"),
}


SETTLED = {
    "train": "The {o} is a man who said that",
    "validation": "The {o} , a man , left because",
    "test": "The {o} is a man , was late because",
}


PARTS = Parts(*(tiny_questions(frames=FRAMES[k]) + tiny_questions(frames=(SETTLED[k],), right=0) for k in FRAMES))


SMALL = {
    "dso": {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "questions_per_occupation": 2,
        "use_cpu": True,
        "l1_coef": 0.0,
    },
    "lineas": {"steps": 2, "batch_size": 8},
    "counterfactual": {"max_steps": 2, "batch_size": 8, "questions_per_occupation": 2},
    "counterfactual-pairs": {"max_steps": 2, "batch_size": 8, "questions_per_occupation": 2},
}


TEXTS = ["The nurse who is late said that", "When a man left , the driver was late"]


def load():
    model = randomize(build("llama"))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
    return model, TOKENIZER


def run(folder, methods=None, parts=PARTS, said=None, **options):
    options = {"settings": SMALL, "neutral": TEXTS, **options}
    return compare(load, parts, folder, methods, say=(said if said is not None else []).append, **options)
