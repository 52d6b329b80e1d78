"""The questions of a comparison: fewer of them, and divided in three."""

from collections import Counter

import pytest
from compared import FRAMES, PARTS
from models import tiny_questions

from peft_dso.baselines.parts import Parts, check_parts, parts_of
from peft_dso.questions import coreference_questions, pronoun_questions, subset


def test_a_subset_has_the_same_share_of_everybody():
    rows = pronoun_questions("test") + pronoun_questions("test", ambiguous=False)
    few = subset(rows, 600)
    assert abs(len(few) - 600) < 120 and few == subset(rows, 600) and all(row in rows for row in few)
    for ambiguous in (True, False):
        counts = [
            sum(row["occupation"] == name and (row["right"] is None) == ambiguous for row in few)
            for name in {row["occupation"] for row in rows}
        ]
        assert min(counts) > 0 and max(counts) - min(counts) <= 4
    kept = {row["pair"] for row in few}
    assert sum(row["pair"] in kept for row in rows) == len(few)
    assert subset(rows, None) == rows


def test_a_small_subset_leaves_occupations_out_but_no_kind():
    rows = pronoun_questions("test") + pronoun_questions("test", ambiguous=False)
    for count in (40, 60):
        few = subset(rows, count)
        assert abs(len(few) - count) <= 12
        assert {row["right"] is None for row in few} == {True, False}
        assert len({row["occupation"] for row in few}) >= count / 4


def test_a_subset_of_co_reference_cuts_no_pair_and_keeps_to_the_count():
    """A pair stands for two occupations there, and for one kind; where it stands for both kinds it is whole too."""
    open_rows, told = coreference_questions(), coreference_questions(ambiguous=False)
    both = [{**row, "right": n % 2 or None} for n, row in enumerate(open_rows)]
    for rows in (open_rows, told, open_rows + told, both):
        whole = Counter(row["pair"] for row in rows)
        for count in (20, 40, 41, 60, 100, 200, 300, 360, 600, 1000):
            few = subset(rows, count, seed=1)
            assert all(n == whole[pair] for pair, n in Counter(row["pair"] for row in few).items())
            # Half of a pair, and a fifth where two of each or more are wanted.
            assert abs(len(few) - count) <= max(whole.values()) / 2 + 0.2 * count * (count >= 2 * 20 * 4), count
            of_each = Counter(row["occupation"] for row in few)
            most, least = max(of_each.values()), min(of_each[row["occupation"]] for row in rows)
            assert most - least <= max(whole.values()), (count, of_each)
            assert few == subset(rows, count, seed=1)


def test_a_subset_of_each_kind():
    rows = pronoun_questions("test") + pronoun_questions("test", ambiguous=False)
    ambiguous = [row["right"] is None for row in subset(rows, 200, each_kind=True)]
    assert ambiguous == sorted(ambiguous, reverse=True)
    assert abs(sum(ambiguous) - 200) <= 60 and abs(ambiguous.count(False) - 200) <= 60
    with pytest.raises(ValueError, match="count=0"):
        subset(rows, 0)


def test_half_of_the_validation_questions_are_unambiguous():
    rows = pronoun_questions("validation") + pronoun_questions("validation", ambiguous=False)
    parts = parts_of(PARTS.train, rows, PARTS.test, validated=200)
    kinds = Counter(row["right"] is None for row in parts.validation)
    assert all(abs(count - 100) <= 20 for count in kinds.values()) and len(kinds) == 2
    few = [row for row in rows if row["right"] is None] + [row for row in rows if row["right"] is not None][:8]
    kinds = Counter(row["right"] is None for row in parts_of(PARTS.train, few, PARTS.test, validated=200).validation)
    assert kinds[False] == 8 and abs(kinds[True] - 192) <= 20
    assert parts_of(PARTS.train, few, PARTS.test, validated=len(few)).validation == few
    assert parts_of(PARTS.train, rows, PARTS.test, validated=200, halves=False).validation == subset(rows, 200)


def test_questions_of_a_file_are_divided():
    rows = [
        {**row, "group": frame}
        for frame in [f for frames in FRAMES.values() for f in frames]
        for row in tiny_questions(frames=(frame,))
    ]
    parts = parts_of(rows, rows, rows)
    groups = [{row["group"] for row in part} for part in (parts.train, parts.validation, parts.test)]
    assert all(groups) and sum(map(len, groups)) == len(set().union(*groups)) == 5
    assert parts_of(PARTS.train, PARTS.validation, PARTS.test) == PARTS


def test_questions_that_stand_in_two_parts_are_divided_or_refused():
    mine = [{**row, "prompt": f"In town, {row['prompt']}", "group": str(n)} for n, row in enumerate(tiny_questions())]
    built = [pronoun_questions(split)[:40] for split in ("train", "validation", "test")]
    parts = parts_of(*(rows + mine for rows in built))
    found = [{row["prompt"] for row in rows if row["prompt"].startswith("In town")} for rows in vars(parts).values()]
    assert all(found) and not (found[0] & found[1] or found[0] & found[2] or found[1] & found[2])
    assert set().union(*found) == {row["prompt"] for row in mine}
    parts = parts_of(mine, mine, mine, occupations=True)
    names = [{row["occupation"] for row in rows} for rows in vars(parts).values()]
    assert all(names) and not (names[0] & names[2] or names[0] & names[1] or names[1] & names[2])
    with pytest.raises(ValueError, match="judged on what it was fitted"):
        check_parts(Parts(mine, mine, mine), [])
