"""What the methods are fitted on, and what their models say, in the open."""

import torch
from models import build, randomize, tiny_questions, tiny_tokenizer


TOKENIZER = tiny_tokenizer()


ROWS = tiny_questions()


SETTLED = tiny_questions(frames=("The {o} who is a man said that",), right=0)


def model_of(name, seed=0):
    """A tiny model whose norms and layers say enough that a mistake with them shows."""
    model = randomize(build(name, seed=seed))
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.data *= 8
    return model


def token_ids(prompt, answer=""):
    return torch.tensor([TOKENIZER(prompt)["input_ids"] + TOKENIZER(answer, add_special_tokens=False)["input_ids"]])


def heard(model, module, ids, side="output", **more):
    """What goes into or comes out of a module for one text alone, shape (tokens, d), as float64."""
    kept = []
    if side == "output":
        handle = module.register_forward_hook(lambda m, a, o: kept.append(o[0] if isinstance(o, (tuple, list)) else o))
    else:
        handle = module.register_forward_pre_hook(lambda m, a: kept.append(a[0]))
    with torch.no_grad():
        model(input_ids=ids, **more)
    handle.remove()
    return kept[0].reshape(ids.shape[1], -1).double().numpy()


def texts(meaning, rows=ROWS):
    """The questions with their pro or anti answer, in the order of the rows."""
    return [token_ids(row["prompt"], row["answers"][row["meanings"].index(meaning)]) for row in rows]


def logits(model, prompt="The nurse said that"):
    with torch.no_grad():
        return model(input_ids=token_ids(prompt)).logits
