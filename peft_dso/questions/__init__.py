"""Questions: rows of data that show whether a model leans on a stereotype. The columns are described in `schema`."""

from .coreference import coreference_questions
from .groups import question_groups, trainable_groups
from .image_pairs import QUESTION_KINDS, image_pair_questions, social_counterfactuals
from .loaders import load_bbq_gender, load_occupations, load_synthbias, load_winobias, load_winogender
from .occupations import OCCUPATIONS, Occupation
from .pronouns import pronoun_questions, split_occupations
from .schema import abstention_forms, answer_forms, check_questions
from .sources import load_questions
from .splits import split_questions


__all__ = [
    "OCCUPATIONS",
    "QUESTION_KINDS",
    "Occupation",
    "abstention_forms",
    "answer_forms",
    "check_questions",
    "coreference_questions",
    "image_pair_questions",
    "load_bbq_gender",
    "load_occupations",
    "load_questions",
    "load_synthbias",
    "load_winobias",
    "load_winogender",
    "pronoun_questions",
    "question_groups",
    "social_counterfactuals",
    "split_occupations",
    "split_questions",
    "trainable_groups",
]
