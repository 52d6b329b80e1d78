"""What a model says to questions: the log-probabilities of given answers, in one forward pass per prompt."""

from .encode import (
    EncodedQuestion,
    PicturedQuestion,
    check_reads_pictures,
    encode_question,
    encode_row,
)
from .forward import (
    Scores,
    lay_out,
    lay_out_pictured,
    left_padded,
    on_model,
    pictured_inputs,
    score_layout,
    score_packed,
    score_pictured,
    score_plain,
)
from .pack import PackedQuestions, batches, pack
from .prompts import row_images, with_images
from .reading import check_readable, evaluating, input_device, positions_limit
from .score import Prepared, prepare, score, score_batch, score_prepared
from .terms import AnswerTerms, Term, answer_terms
from .tokens import continuations, first_tokens
from .tries import reads_tries


__all__ = [
    "AnswerTerms",
    "EncodedQuestion",
    "PackedQuestions",
    "PicturedQuestion",
    "Prepared",
    "Scores",
    "Term",
    "answer_terms",
    "batches",
    "check_readable",
    "check_reads_pictures",
    "continuations",
    "encode_question",
    "encode_row",
    "evaluating",
    "first_tokens",
    "input_device",
    "lay_out",
    "lay_out_pictured",
    "left_padded",
    "on_model",
    "pack",
    "pictured_inputs",
    "positions_limit",
    "prepare",
    "reads_tries",
    "row_images",
    "score",
    "score_batch",
    "score_layout",
    "score_packed",
    "score_pictured",
    "score_plain",
    "score_prepared",
    "with_images",
]
