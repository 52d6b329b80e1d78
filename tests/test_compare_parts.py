"""The questions of a comparison: fewer of them, and divided in three."""

from collections import Counter
from dataclasses import replace

import pytest
from compared import FRAMES, PARTS, TOKENIZER, run
from models import build, tiny_questions

from peft_dso.baselines.comparison import compare
from peft_dso.baselines.methods import chosen_methods
from peft_dso.baselines.parts import Parts, check_parts, parts_of
from peft_dso.questions import coreference_questions, load_questions, pronoun_questions, subset
from peft_dso.questions.splits import SPLITS


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


def in_frames(frames, **more):
    return [{**row, "group": frame, **more} for frame in frames for row in tiny_questions(frames=(frame,))]


FOUR = ("The {o} said that", "The {o} left because", "The {o} was late because", "When the {o} left ,")


def test_both_draws_go_by_the_sentence_frames():
    """Three frames are left for the second draw, which divided rows then."""
    rows = in_frames(FOUR)
    groups = [{row["group"] for row in part} for part in vars(parts_of(rows, rows, rows)).values()]
    assert sorted(map(len, groups)) == [1, 1, 2] and set().union(*groups) == set(FOUR)
    kinds = [*in_frames(FOUR[:2]), *in_frames(FOUR[2:], right=0)]
    with pytest.raises(ValueError, match="same in every part cannot be divided in three"):
        parts_of(kinds, kinds, kinds)
    few = in_frames(FOUR[:3])  # go by rows, also beside a builder
    for own in ([], [pronoun_questions(split)[:200] for split in ("train", "validation", "test")]):
        parts = parts_of(*([*rows, *few] for rows in own or ([], [], [])))
        mine = {row["prompt"] for row in few}
        assert all(mine & {row["prompt"] for row in part} for part in vars(parts).values())
        check_parts(parts, [])


def test_parts_that_share_a_frame_or_a_pair_are_refused():
    train, validation, test = (in_frames(frames) for frames in (FOUR[:2], FOUR[2:3], FOUR[3:]))
    check_parts(Parts(train, validation, test), chosen_methods())
    with pytest.raises(
        ValueError, match="group 'The {o} left because' stands in the train part and in the validation"
    ):
        check_parts(Parts(train[:-1], [*validation, train[-1]], test), [])
    paired = [[{**rows[0], "pair": "7"}, *rows[1:]] for rows in (train, test)]
    with pytest.raises(ValueError, match="pair '7' stands in the train part and in the test part, and 0 more"):
        check_parts(Parts(paired[0], validation, paired[1]), [])


def test_occupations_of_a_builder_are_held_out_of_a_file_too():
    built = [load_questions("pronouns", split, held_out_occupations=True) for split in SPLITS]
    mine = [{**row, "prompt": f"In town, {row['prompt']}", "pair": None} for row in pronoun_questions("test")[::3]]
    mine += in_frames(["The {o} went home because"], occupation="wizard")[:1]
    parts = parts_of(*([*rows, *mine] for rows in built), occupations=True)
    allowed = [{row["occupation"] for row in rows} for rows in built]
    for part, names, others in zip(vars(parts).values(), allowed, (1, 0, 0), strict=True):
        found = {row["occupation"] for row in part}
        assert found <= names | {"wizard"} and ("wizard" in found) == bool(others)
        assert any(row["prompt"].startswith("In town") for row in part)
    assert sum(map(len, vars(parts).values())) == sum(map(len, built)) + len(mine)
    check_parts(parts, chosen_methods())


def test_shared_occupations_are_refused_where_whole_ones_were_to_be_held_out():
    with pytest.raises(ValueError, match="validation part asks about occupations of the train part .*clerk"):
        parts_of(PARTS.train, PARTS.validation, PARTS.test, occupations=True)


def test_three_groups_are_refused_by_what_learns_from_contrasts_alone(tmp_path):
    def three(rows):
        return [{**row, "answers": [" he", " she", " they"], "meanings": ["male", "female", "other"]} for row in rows]

    parts = Parts(*map(three, (PARTS.train, PARTS.validation, PARTS.test)))
    others = "dso,counterfactual,counterfactual-pairs,prompting"
    with pytest.raises(ValueError, match=f"iti.* cannot be had; for the others give --methods {others}\\."):
        run(tmp_path / "out", ["dso", "iti"], parts=parts)
    found = run(tmp_path / "out", others.split(","), parts=parts)
    assert not found.failures and {"dso", "counterfactual", "counterfactual-pairs", "prompting: role"} <= set(
        found.reports
    )
    one = [{**row, "meanings": ["pro", "pro"]} if row["occupation"] == "nurse" else row for row in PARTS.train]
    for rows, message in (
        (one, "All answers about 'nurse' mean 'pro'"),
        (tiny_questions(("nurse",)), "All questions are about 'nurse'"),
        (tiny_questions(right=0), "no ambiguous question"),
    ):
        with pytest.raises(
            ValueError, match=f"train part of the questions is of no use for a comparison: .*{message}"
        ):
            check_parts(Parts(rows, PARTS.validation, PARTS.test), chosen_methods(["dso"]))
    male = [row for row in PARTS.train if row["occupation"] in ("driver", "farmer")]
    check_parts(Parts(male, PARTS.validation, PARTS.test), chosen_methods(["dso"]))


def test_a_question_that_stands_twice_counts_once():
    """Of one file its copies would stand in different parts."""
    rows = [{**row, "pair": None, "group": None} for row in in_frames(FOUR)]
    rows += [dict(row) for row in rows[::3]]
    parts = parts_of(rows, rows, rows)
    check_parts(parts, [])
    prompts = [(row["prompt"], row["occupation"]) for part in vars(parts).values() for row in part]
    assert sorted(prompts) == sorted({(row["prompt"], row["occupation"]) for row in rows})


def test_a_question_beyond_the_positions_is_refused_before_anything_is_fitted(tmp_path):
    model = build("gpt2")
    positions = model.config.max_position_embeddings
    for part in ("train", "test"):
        rows = list(getattr(PARTS, part))
        rows[0] = {**rows[0], "prompt": "The nurse said that " * positions}
        with pytest.raises(ValueError, match="positions"):
            compare(lambda: (model, TOKENIZER), replace(PARTS, **{part: rows}), tmp_path, ["caa", "iti"])
    assert not any(tmp_path.iterdir())
