"""Neutral texts: those of the package, and a file of one's own."""

import re

import pytest

from peft_dso.questions import OCCUPATIONS, neutral_texts, read_texts


PARTS = ("train", "validation", "test")


def test_three_parts_of_short_texts_that_differ():
    parts = [neutral_texts(split) for split in PARTS]
    assert [len(part) for part in parts] == [144, 48, 48]
    assert len(set().union(*parts)) == 240
    assert all(15 <= len(text) <= 160 and text == text.strip() for part in parts for text in part)
    assert neutral_texts() == parts[0] == neutral_texts("train")
    for part in parts:  # each part has each kind
        assert any(re.search(r"[{}();<=|]{2}|SELECT|git |[a-z]\(", text) for text in part)  # code
        assert any(re.search(r"[äöüßéèñçąąśżõãåøл가-힣一-鿿]", text) for text in part)  # other languages
        assert any(text.startswith('"') or " B: " in text for text in part)  # dialogue
    with pytest.raises(ValueError, match="split='dev'"):
        neutral_texts("dev")


def test_nobody_is_spoken_of():
    """No occupation of the tasks, and no word of gender."""
    words = {word for part in PARTS for text in neutral_texts(part) for word in re.findall(r"[a-z]+", text.lower())}
    people = {word for o in OCCUPATIONS for word in (o.name.lower(), f"{o.name.lower()}s")}
    assert not words & people
    assert not words & {"he", "she", "him", "her", "his", "hers", "man", "men", "woman", "women", "male", "female"}


def test_a_file_of_ones_own(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_bytes("\ufeff one\u2028still\rone \r\ntwo\r\nthree\nfour\nfive\nsix".encode())
    assert read_texts(path) == ["one\u2028still\rone", "two", "three", "four", "five", "six"]
    assert [neutral_texts(split, path) for split in PARTS] == [
        ["one\u2028still\rone", "two", "three", "six"],
        ["four"],
        ["five"],
    ]
    path.write_text("\n\nfirst line\nsecond line\n\n  \nanother paragraph\n\nlast\n\n\n")
    assert read_texts(path) == ["first line\nsecond line", "another paragraph", "last"]
    path.write_text("\n\none\ntwo\n\n\n")  # empty lines around the text divide nothing
    assert read_texts(path) == ["one", "two"]
    with pytest.raises(ValueError, match=r"mine.txt holds 2 texts: give at least 5"):
        neutral_texts("test", path)
    for data, message in (
        (b"one\ntwo\x00\n", "mine.txt, line 2: a null byte"),
        (b"one\ntwo\n\xff\xfe\n", "mine.txt is no UTF-8 text"),
        (b"\n \n", "mine.txt, line 1: there is no text"),
        (b"", "mine.txt, line 1: there is no text"),
    ):
        path.write_bytes(data)
        with pytest.raises(ValueError, match=message):
            read_texts(path)
    with pytest.raises(FileNotFoundError, match="no file"):
        read_texts(tmp_path / "none.txt")


def test_wheel_and_sdist_hold_the_texts(tmp_path):
    """By the build backend itself, without a network."""
    build = pytest.importorskip("hatchling.build")
    import os
    import tarfile
    import zipfile
    from pathlib import Path

    before = os.getcwd()
    os.chdir(Path(__file__).parents[1])
    try:
        wheel, sdist = build.build_wheel(str(tmp_path)), build.build_sdist(str(tmp_path))
    finally:
        os.chdir(before)
    with zipfile.ZipFile(tmp_path / wheel) as archive:
        assert "peft_dso/questions/neutral.txt" in archive.namelist()
    with tarfile.open(tmp_path / sdist) as archive:
        assert any(name.endswith("/peft_dso/questions/neutral.txt") for name in archive.getnames())
