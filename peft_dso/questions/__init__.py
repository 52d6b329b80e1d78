"""Questions: rows of data that show whether a model leans on a stereotype. The columns are described in `schema`."""

from ..answers import abstention_forms, answer_forms
from .bbq import load_bbq_gender
from .coreference import coreference_questions, coreference_sentences
from .groups import question_groups, trainable_groups
from .image_pairs import QUESTION_KINDS, image_pair_questions, social_counterfactuals
from .loaders import load_occupations, load_synthbias, load_winobias, load_winogender
from .neutral import neutral_texts, read_texts
from .occupations import OCCUPATIONS, Occupation
from .pronouns import pronoun_questions
from .registry import QuestionSet, describe_sets, load_questions, question_set, read_rows
from .schema import check_questions
from .splits import hold_out, split_occupations, split_questions
from .subsets import subset


__all__ = [
    "OCCUPATIONS",
    "QUESTION_KINDS",
    "Occupation",
    "QuestionSet",
    "abstention_forms",
    "answer_forms",
    "check_questions",
    "coreference_questions",
    "coreference_sentences",
    "describe_sets",
    "hold_out",
    "image_pair_questions",
    "load_bbq_gender",
    "load_occupations",
    "load_questions",
    "load_synthbias",
    "load_winobias",
    "load_winogender",
    "neutral_texts",
    "pronoun_questions",
    "question_groups",
    "question_set",
    "read_rows",
    "read_texts",
    "social_counterfactuals",
    "split_occupations",
    "split_questions",
    "subset",
    "trainable_groups",
]
