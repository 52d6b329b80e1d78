"""Lists of numbers on the command line."""

import argparse

import pytest

from peft_dso.cli import strength_list
from peft_dso.cli.arguments import joined_lists


def test_lists_that_begin_with_a_minus():
    assert joined_lists(["sweep", "--strengths", "-1,0,1", "--out", "-1,x"]) == [
        "sweep", "--strengths=-1,0,1", "--out=-1,x"
    ]  # fmt: skip
    assert joined_lists(["--strengths=-1,0", "-.5,1"]) == ["--strengths=-1,0", "-.5,1"]
    assert joined_lists(["--beta", "-1", "--push", "a,b"]) == ["--beta", "-1", "--push", "a,b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0,0.2,...,1", [0, 0.2, 0.4, 0.6, 0.8, 1]),
        ("1", [1]),
        ("-1,0,2.5", [-1, 0, 2.5]),
        ("0,1,...,3,5", [0, 1, 2, 3, 5]),
    ],
)
def test_lists_of_strengths(text, expected):
    assert strength_list(text) == expected


@pytest.mark.parametrize("text", ["", "a", "0,...,1", "0,0.3,...,1", "0,0,...,1", "...", "0,0.5,..."])
def test_wrong_lists_of_strengths(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no list of strengths"):
        strength_list(text)
