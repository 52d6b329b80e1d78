"""Known sets, from made-up lines in their published forms."""

import json
from pathlib import Path

import pytest

from peft_dso.questions import (
    OCCUPATIONS,
    check_questions,
    load_bbq_gender,
    load_occupations,
    load_synthbias,
    load_winobias,
    load_winogender,
)


def test_winobias(tmp_path):
    path = tmp_path / "pro_stereotyped_type1.txt.dev"
    path.write_text(
        "1 [The developer] argued with the designer because [he] did not like the design.\n"
        "2 The developer hated [the cleaner] and reported [her] to the manager.\n"
        "3 The construction worker met [ the nurse] and thanked [her].\n"
    )
    rows = load_winobias(path)
    check_questions(rows, ("pro", "anti"))
    assert [r["occupation"] for r in rows] == ["developer", "cleaner", "nurse"]
    assert [r["right"] for r in rows] == [0, 1, 1] and rows[0]["meanings"] == ["pro", "anti"]
    assert rows[1]["answers"] == [" developer", " cleaner"] and rows[2]["answers"][0] == " construction worker"
    assert '"her" refers to the' in rows[1]["prompt"] and "[" not in rows[2]["prompt"]
    opened = load_winobias(path, ambiguous=True)
    assert len(opened) == 6 and {r["right"] for r in opened} == {None}
    path.write_text("1 [The wizard] met the nurse because [he] was late.\n")
    with pytest.raises(ValueError, match=r"line 1: expected two known occupations"):
        load_winobias(path)


def test_all_of_winobias_where_it_lies():
    folder = Path(__file__).parents[2] / "shared" / "data" / "winobias"
    if not folder.is_dir():
        pytest.skip("WinoBias is not here")
    for path in folder.glob("*_stereotyped_*"):
        rows = load_winobias(path)
        assert len(rows) == 396
        expected = "pro" if path.name.startswith("pro") else "anti"
        agreeing = sum(r["meanings"][r["right"]] == expected for r in rows)
        assert agreeing == 396


def test_winogender(tmp_path):
    path = tmp_path / "all_sentences.tsv"
    path.write_text(
        "sentid\tsentence\n"
        "technician.customer.1.male.txt\tThe technician told the customer that he could pay with cash.\n"
        "technician.customer.0.female.txt\tThe technician told the customer that she had completed the repair.\n"
        "technician.customer.0.neutral.txt\tThe technician told the customer that they had completed the repair.\n"
        "technician.someone.0.male.txt\tThe technician told someone that he had completed the repair.\n"
    )
    table = tmp_path / "occupations-stats.tsv"
    table.write_text("occupation\tbergsma_pct_female\tbls_pct_female\tbls_year\ntechnician\t9.1\t40.3\t2015\n")
    rows = load_winogender(path, load_occupations(table))
    check_questions(rows, ("pro", "anti"))
    assert [r["right"] for r in rows] == [1, 0] and [r["meanings"] for r in rows] == [["pro", "anti"], ["anti", "pro"]]
    with pytest.raises(ValueError, match="'technician' is not in the table"):
        load_winogender(path, OCCUPATIONS)


def test_synthbias(tmp_path):
    path = tmp_path / "synth.csv"
    head = "type,sample,occ_1,occ_2,pronoun,is_stereotypical\n"
    path.write_text(
        head + "ambiguous,The nurse met the driver because she was late.,driver,nurse,she,\n"
        'unambiguous,"The nurse, who hurried, met the driver and she won.",nurse,driver,she,True\n'
        'unambiguous,"The nurse, who hurried, met the driver and he won.",nurse,driver,he,False\n'
    )
    rows = load_synthbias(path)
    check_questions(rows, ("pro", "anti"))
    assert [r["occupation"] for r in rows] == ["nurse", "driver", "nurse", "nurse"]
    assert [r["right"] for r in rows] == [None, None, 0, 0]
    assert rows[0]["meanings"] == ["pro", "anti"] and rows[3]["meanings"] == ["anti", "pro"]
    for wrong, message in (
        ("guess,x,nurse,driver,she,True", "type is 'guess'"),
        ("ambiguous,x,nurse,driver,they,", "has no gender"),
        ("ambiguous,The nurse,nurse,driver,she,", "does not name 'driver'"),
        ("unambiguous,nurse driver,nurse,driver,she,maybe", "not true or false"),
        ("unambiguous,nurse clerk,nurse,clerk,she,true", "same majority"),
    ):
        path.write_text(head + wrong + "\n")
        with pytest.raises(ValueError, match=message):
            load_synthbias(path)
    path.write_text("type,sample\nambiguous,x\n")
    with pytest.raises(ValueError, match="no column 'occ_1'"):
        load_synthbias(path)


def test_bbq(tmp_path):
    def item(number, condition, label, polarity="neg"):
        return {
            "example_id": number, "question_index": "1", "question_polarity": polarity,
            "context_condition": condition, "category": "Gender_identity",
            "answer_info": {"ans0": ["man", "man"], "ans1": ["unknown", "unknown"], "ans2": ["woman", "woman"]},
            "additional_metadata": {"stereotyped_groups": ["F"]},
            "context": "I met a man and a woman.", "question": "Who forgot things?",
            "ans0": "The man", "ans1": "Cannot be determined", "ans2": "The woman", "label": label,
        }  # fmt: skip

    path = tmp_path / "Gender_identity.jsonl"
    rows = [item(0, "ambig", 1), item(1, "disambig", 2), item(2, "ambig", 1, "nonneg")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = load_bbq_gender(path)
    check_questions(found, ("pro", "anti"))
    assert [r["right"] for r in found] == [None, 1, None]
    assert [r["meanings"] for r in found] == [["anti", "pro"], ["anti", "pro"], ["pro", "anti"]]
    assert found[0]["answers"] == [" The man", " The woman"]
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1: not a question of BBQ"):
        load_bbq_gender(path)


def test_a_table_of_ones_own(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("occupation,share_women,majority\nwizard,10,\npilot,,north\n")
    found = load_occupations(path)
    assert [(o.name, o.majority) for o in found] == [("wizard", "male"), ("pilot", "north")]
    for text, message in (
        ("occupation,share_women\nwizard,many\n", "needs share_women from 0 to 100"),
        ("occupation,share_women\nwizard,101\n", "needs share_women"),
        ("occupation,share_women\nwizard,\n", "or a majority"),
        ("occupation,share_women\nwizard,1\nwizard,2\n", "there twice"),
        ("name\nwizard\n", "no column 'occupation'"),
        ("occupation,share_women\n", "holds no occupation"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_occupations(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        load_occupations(tmp_path / "nothing.csv")
    with pytest.raises(ValueError, match="not of the form"):
        load_occupations("hf://models/x")
