"""
Whether the probability of an answer, summed over its forms, is how often a model says it.

    python benchmarks/sampled_answers.py [MODEL ...] [--questions 50] [--samples 200]

MODEL is smollm2 or qwen2.5-coder-0.5b-instruct (see real_models.py), or a folder with a chat template; default both.
Co-reference as a chat, unsteered. Each question is answered freely `--samples` times at temperature 1 (the prompt
is read once for all of them), and a text counts for the person whose forms it begins with. Printed: the probability
left on named answers and abstentions, how often the texts begin with one, the difference of the first person's
share (mean, and root mean square in standard errors of the sampling: 1 where the two agree), and the largest.
"""

from __future__ import annotations

import argparse
import random
from typing import Any

import numpy as np
import torch
from real_models import model_folder
from tqdm.auto import tqdm

from peft_dso.models import load_base
from peft_dso.questions import coreference_questions, split_occupations
from peft_dso.scoring import encode_row, score


MODELS = ("smollm2", "qwen2.5-coder-0.5b-instruct")
# The distribution itself: what a folder's generation_config.json asks for is switched off.
SAMPLING = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "repetition_penalty": 1.0}


@torch.no_grad()
def sampled(model: Any, tokenizer: Any, prompt: list[int], samples: int, length: int) -> list[str]:
    """What a model writes after one prompt, `samples` times, at most `length` tokens each."""
    tokens = torch.tensor([prompt])
    read = model(tokens[:, :-1], use_cache=True).past_key_values
    read.batch_repeat_interleave(samples)
    tokens = tokens.expand(samples, -1)
    written = model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        past_key_values=read,
        max_new_tokens=length,
        pad_token_id=tokenizer.pad_token_id,
        **SAMPLING,
    )
    return tokenizer.batch_decode(written[:, len(prompt) :], skip_special_tokens=True)


def check(name: str, questions: int, samples: int) -> str:
    """One line of the table."""
    model, processor = load_base(str(model_folder(name)))
    rows = coreference_questions(split_occupations()[1], chat=True)
    rows = random.Random(0).sample(rows, questions)
    encoded = [encode_row(processor, row) for row in rows]
    answers, named = np.zeros((questions, 2)), np.zeros(questions)
    for numbers, scores in score(model, encoded):
        answers[numbers] = scores.answers.exp().double().numpy()
        named[numbers] = answers[numbers].sum(-1) + scores.abstentions.exp().double().numpy()
    said, counted = np.zeros((questions, 2)), np.zeros(questions)
    for number, (row, question) in enumerate(zip(tqdm(rows), encoded, strict=True)):
        length = 1 + max(len(form) for forms in (*question.answers, question.abstentions) for form in forms)
        for text in sampled(model, processor, question.prompt, samples, length):
            which = [text.startswith(tuple(forms)) for forms in row["forms"]]
            said[number] += which
            counted[number] += any(which) or text.startswith(tuple(row["abstentions"]))
    share, total = answers[:, 0] / answers.sum(-1), said.sum(-1)
    answered = total > 0
    share, total = share[answered], total[answered]
    differences = said[answered, 0] / total - share
    z = differences / np.sqrt(share * (1 - share) / total)
    return (
        f"| {name} | {named.mean():.3f} | {counted.mean() / samples:.3f} | {differences.mean():+.4f} | "
        f"{np.sqrt(np.mean(z**2)):.2f} | {np.abs(z).max():.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", nargs="*", default=list(MODELS))
    parser.add_argument("--questions", type=int, default=50)
    parser.add_argument("--samples", type=int, default=200)
    options = parser.parse_args()
    titles = ("model", "probability named", "texts that name one", "difference of shares", "rms in errors", "largest")
    print("| " + " | ".join(titles) + " |\n" + "|---" * len(titles) + "|")
    for name in options.models:
        print(check(name, options.questions, options.samples), flush=True)


if __name__ == "__main__":
    main()
