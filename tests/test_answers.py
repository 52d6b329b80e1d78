"""Reading answers out of free text."""

import pytest

from peft_dso.answers import read_answer


@pytest.mark.parametrize(
    ("text", "answers", "expected"),
    [
        (" he was late.", [" he", " she"], 0),
        ("She", ["he", "she"], 1),
        ("the sheriff", ["he", "she"], None),  # never a part of a word
        ("he or she", ["he", "she"], None),  # several
        ("he said that he", ["he", "she"], 0),  # one, twice
        ("they", ["he", "she"], None),
        ("", ["he", "she"], None),
        ("The bus  driver did it", ["driver", "bus driver"], 1),  # the longer one
        ("A driver and a bus driver", ["driver", "bus driver"], None),
        ("B", ["A", "B"], 1),
        ("(B) is right", ["A", "B"], 1),
        ("Answer: B.", ["A", "B"], 1),
        ("A doctor is seen on the left", ["A", "B"], None),  # an article
        ("A is the doctor", ["A", "B"], 0),
        ("A doctor, so B", ["A", "B"], 1),
        ("option b", ["A", "B"], None),  # an option is a capital letter
        ("C++ it is", ["C++", "Java"], 0),  # no regex syntax in an answer
    ],
)
def test_read_answer(text, answers, expected):
    assert read_answer(text, answers) == expected


def test_an_empty_answer_is_refused():
    with pytest.raises(ValueError, match="empty"):
        read_answer("he", ["he", " "])
