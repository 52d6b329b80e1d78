"""Parts of the command line: lists of numbers, names of adapters, whether a base shows a bias."""

import argparse
import math

import pytest
import torch

from peft_dso.cli import strength_list
from peft_dso.cli.app import adapter_names
from peft_dso.cli.arguments import joined_lists
from peft_dso.evaluation import Report, StrengthResult, shows_bias, warnings_of
from peft_dso.evaluation.measures import Measure


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


@pytest.mark.parametrize(
    "text", ["", "a", "0,...,1", "0,0.3,...,1", "0,0,...,1", "...", "0,0.5,...", "0,1e-320,...,1", "0,1e-9,...,1"]
)
def test_wrong_lists_of_strengths(text):
    with pytest.raises(argparse.ArgumentTypeError, match="no list of strengths"):
        strength_list(text)


@pytest.mark.parametrize(
    ("bias", "floor", "expected"),
    [
        ((0.9, 0.1), math.nan, True),
        ((0.3, 0.02), 0.1, True),
        ((0.05, 0.02), 0.02, False),
        ((0.0, 0.0), 0.0, False),
        ((0.012, 0.001), 0.005, False),
    ],
)
def test_whether_a_base_shows_a_bias(bias, floor, expected):
    """Also where its floor cannot be told, since no occupation has two questions; as the report says it."""
    base = StrengthResult(0.0, {"bias": Measure(*bias, 10), "noise_floor": Measure(floor, math.nan, 10)})
    assert shows_bias(base) == expected
    (said, *more) = [*warnings_of(Report({"test": [base]})), ""]
    assert ("no bias above its floor" in said) == (not expected) and len(more) == (said != "")
    assert ("too few questions" in said) == math.isnan(floor)


def test_names_of_adapters_that_a_module_can_hold(tmp_path):
    for name in ("train", "keys", "v1.0"):
        (found,) = adapter_names([str(tmp_path / name)])
        torch.nn.ModuleDict()[found] = torch.nn.Identity()
    named = adapter_names(["a/x", "b/x-3", "c/x", "d/x"])
    assert sorted(named.values()) == ["a/x", "b/x-3", "c/x", "d/x"]
