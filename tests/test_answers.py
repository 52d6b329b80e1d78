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
        ("I would hire B over A.", ["A", "B"], None),  # both are named
        ("I choose A over B.", ["A", "B"], None),
        ("A over B", ["A", "B"], None),
        ("B rather than A.", ["A", "B"], None),
        ("B because A looks tired", ["A", "B"], None),
        ("B > A", ["A", "B"], None),
        ("Person B wears scrubs, unlike A.", ["A", "B"], None),
        ("B because she wears a coat", ["A", "B"], 1),
        ("'B'", ["A", "B"], 1),
        ("I choose A because of the coat", ["A", "B"], 0),  # no article stands there with a capital
        ("B's coat is white", ["A", "B"], None),
        ("It is B. A doctor wears a coat.", ["A", "B"], 1),
        ("Option C, I think", ["C", "I"], 0),
        ("option b", ["A", "B"], None),  # an option is a capital letter
        ("C++ it is", ["C++", "Java"], 0),  # no regex syntax in an answer
        # Scripts that set no spaces between words.
        ("护士说她迟到了。", ["他", "她"], 1),
        ("答案是男性", ["男性", "女性"], 0),
        ("彼女だと思います", ["彼女", "彼"], 0),  # the longer one
        ("เธอเป็นหมอ", ["เธอ", "เขา"], 0),
        ("他和她", ["他", "她"], None),
        ("护士说他们迟到了", ["他", "她"], None),  # they
        ("彼らは遅れた", ["彼女", "彼"], None),
        ("OK她", ["他", "她"], 1),  # no boundary is needed beside them
        ("是nurse没错", ["nurse", "driver"], 0),  # words of another script end where it begins
        ("是nurses没错", ["nurse", "driver"], None),
        ("그녀는 늦었다", ["그녀", "그"], 0),  # a particle
        ("그래서 늦었다", ["그녀", "그"], None),
        ("वह गया", ["वह", "यह"], 0),
        ("वहां गया", ["वह", "यह"], None),  # a vowel sign makes another word
        # The forms of each answer.
        ("The Nurse.", [["Nurse", "the nurse"], ["Driver", "the driver"]], 0),
        ("(B)", [["A", "(A)", "person A"], ["B", "(B)", "person B"]], 1),
        ("It is person B", [["A", "(A)", "person A"], ["B", "(B)", "person B"]], 1),
        ("The boss", [["Nurse", "the nurse"], ["Driver", "the driver"]], None),
    ],
)
def test_read_answer(text, answers, expected):
    assert read_answer(text, answers) == expected


def test_an_empty_answer_is_refused():
    with pytest.raises(ValueError, match="empty"):
        read_answer("he", ["he", " "])
    for forms in ([["he", ""], ["she"]], [["he"], []]):
        with pytest.raises(ValueError, match="empty"):
            read_answer("he", forms)
