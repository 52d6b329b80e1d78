"""What a model says to questions: the log-probabilities of given answers, in one forward pass per prompt."""

from .encode import (
    EncodedQuestion,
    PicturedQuestion,
    check_reads_pictures,
    encode_question,
    encode_row,
    row_images,
    with_images,
)
from .forward import Scores, left_padded, on_model, pictured_inputs, score_packed, score_pictured, score_plain
from .pack import PackedQuestions, batches, pack
from .score import evaluating, reads_tries, score, score_batch


__all__ = [
    "EncodedQuestion",
    "PackedQuestions",
    "PicturedQuestion",
    "Scores",
    "batches",
    "check_reads_pictures",
    "encode_question",
    "encode_row",
    "evaluating",
    "left_padded",
    "on_model",
    "pack",
    "pictured_inputs",
    "reads_tries",
    "row_images",
    "score",
    "score_batch",
    "score_packed",
    "score_pictured",
    "score_plain",
    "with_images",
]
