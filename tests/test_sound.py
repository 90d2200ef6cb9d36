"""可唱的字与韵：与另写的判断、手定的读法对照。"""

import csv
import itertools
from pathlib import Path

import pypinyin
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import (
    CLASS_OF_FINAL,
    syllables,
)

from lyrics.sound import RHYME_CLASSES, in_word, possible_classes, rhyme_class, sung_count

# ---- 可唱的字 ----


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("今夜我", 3),
        ("今夜，我！", 3),
        ("今 夜\n我\t", 3),
        ("love", 1),
        ("I love you", 3),
        ("我love你", 3),
        ("love我love", 3),
        ("1999年", 2),
        ("3.14", 2),
        ("２０２４年", 2),
        ("don't", 2),
        ("a_b", 2),
        ("𠮷野家", 3),
        ("😀我😀", 1),
        ("…—（）《》♪～", 0),
        ("サヨナラ", 4),
        ("안녕", 2),
        ("café", 1),
        ("привет мир", 2),
        ("〇", 1),
    ],
)
def test_sung_count(text, count):
    """汉字、假名、谚文各一个，外文词与数目各一个，标点、空格、符号不算。"""
    assert sung_count(text) == count
    assert len(syllables(text)) == count


@pytest.mark.parametrize(("text", "count"), [("ly", 0), ("ly我", 1), (" ly", 1), ("", 0), ("我ly", 2), ("20", 0)])
def test_sung_count_continues_a_word(text, count):
    """接在外文词后面的字母还是那个词的；隔了空格或汉字就是新的。"""
    assert sung_count(text, after_word=True) == count


@given(st.lists(st.sampled_from(["我", "月", "a", "bc", "2", " ", "，", "ー", "é", "_", "𠮷"]), max_size=10))
def test_sung_count_adds_up_over_pieces(pieces):
    """一段一段地数，等于整段数。"""
    total, after = 0, False
    for piece in pieces:
        total += sung_count(piece, after)
        after = in_word(piece[-1])
    assert total == sung_count("".join(pieces)) == len(syllables("".join(pieces)))


def test_a_stray_surrogate_is_not_sung():
    """编码坏了的字不算，也不出错。"""
    assert sung_count("我\ud83d") == 1
    assert rhyme_class("我\ud83d") == "梭坡"


# ---- 韵 ----


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("了断", "言前"),
        ("走了", "梭坡"),
        ("没完没了", "遥条"),
        ("银行", "江阳"),
        ("行走", "油求"),
        ("可行", "中东"),
        ("重新", "人辰"),
        ("山重", "中东"),
        ("重量", "江阳"),
        ("觉得", "梭坡"),
        ("慢慢地", "梭坡"),
        ("风轻轻地", "梭坡"),
        ("天地", "一七"),
        ("睡着", "遥条"),
        ("看着", "梭坡"),
        ("成长", "江阳"),
        ("女儿", "一七"),
        ("知", "一七"),
        ("绿", "一七"),
        ("月", "乜斜"),
        ("雨", "一七"),
        ("路", "姑苏"),
        ("贵", "灰堆"),
        ("怀", "怀来"),
        ("刘", "油求"),
        ("云", "人辰"),
        ("翁", "中东"),
        ("兄", "中东"),
        ("元", "言前"),
        ("月亮！", "江阳"),
        ("月亮 。」", "江阳"),
        ("（月亮）", "江阳"),
        ("我说 love月", "乜斜"),
        ("I love you", None),
        ("我爱Sunshine", None),
        ("唱到1999", None),
        ("月2", None),
        ("サヨナラ", None),
        ("，", None),
        ("", None),
    ],
)
def test_rhyme_class_in_context(line, name):
    """末字照这一行里的读法；标点不论；不以汉字收尾的没有。"""
    assert rhyme_class(line) == name


@pytest.mark.parametrize("line", ["我a", "oh la a", "ai", "我想 i", "o", "u", "er", "an"])
def test_latin_letters_that_look_like_finals_have_no_rhyme(line):
    """外文词即使写得像韵母，也不是汉字。"""
    assert rhyme_class(line) is None


def test_thirteen_classes():
    """十三辙，每个韵母只属于一辙。"""
    finals = [final for names in RHYME_CLASSES.values() for final in names.split()]
    assert len(RHYME_CLASSES) == 13
    assert len(finals) == len(set(finals))


def gb2312() -> list[str]:
    """GB 2312 的 6,763 个汉字。"""
    found = []
    for high, low in itertools.product(range(0xB0, 0xF8), range(0xA1, 0xFF)):
        found.append(bytes([high, low]).decode("gb2312", "ignore"))
    return [character for character in found if character]


def test_every_final_of_every_common_character_belongs_to_a_class():
    """6,763 个汉字的每一种读音都有所属的辙（只有「嗯」这样没有韵母的音节除外），单独的读法在可能的之中。"""
    characters = gb2312()
    assert len(characters) == 6763
    for character in characters:
        finals = pypinyin.pinyin(character, style=pypinyin.Style.FINALS, heteronym=True)[0]
        expected = {CLASS_OF_FINAL[final] for final in finals if final} | ({"梭坡"} if character == "地" else set())
        expected = set(RHYME_CLASSES) if character == "儿" else expected  # 儿化随前一个字
        assert possible_classes(character) == (expected or {None}), character
        assert rhyme_class(character) in possible_classes(character), character


@pytest.mark.parametrize(
    ("character", "names"),
    [("了", {"遥条", "梭坡"}), ("行", {"中东", "江阳"}), ("地", {"一七", "梭坡"}), ("，", {None}), ("サ", {None})],
)
def test_possible_classes(character, names):
    assert possible_classes(character) == names


@pytest.mark.parametrize("word", "慢慢地 天地 走了 了断 睡着 看着 觉得 银行 还行 重新 女儿 目的 好的".split())
def test_the_reading_in_context_is_a_possible_one(word):
    """按表遮住的不会错：语境里的读法总在可能的读法之中。"""
    assert rhyme_class(word) in possible_classes(word[-1])


ENDINGS = list(csv.DictReader((Path(__file__).parent / "rhyme_endings.tsv").open(encoding="utf-8"), delimiter="\t"))


def test_hand_checked_endings():
    """四百多个行末，逐个用手定的读法（三百多个是多音字，六十多个以「儿」收尾）：辙都对。"""
    assert len(ENDINGS) > 400
    wrong = [
        (row["ending"], row["syllable"], rhyme_class(row["ending"]))
        for row in ENDINGS
        if rhyme_class(row["ending"]) != row["rhyme"]
    ]
    assert wrong == []


def test_hand_checked_endings_are_never_masked():
    """按末字遮住词元时，语境里的辙总在可能的之中。"""
    for row in ENDINGS:
        last = [character for character in row["ending"] if character.isalnum()][-1]
        assert row["rhyme"] in possible_classes(last), row["ending"]
