"""Questions: rows of data that show whether a model leans on a stereotype. The columns are described in `schema`."""

from .occupations import OCCUPATIONS, Occupation
from .pronouns import pronoun_questions, split_occupations
from .schema import check_questions


__all__ = ["OCCUPATIONS", "Occupation", "check_questions", "pronoun_questions", "split_occupations"]
