"""韵典：同韵、近韵、双押，常用的在前；选定的读音。"""

import pytest

from lyrics.rhymes import RhymeDictionary, rhyme_kind
from lyrics.sound import readings_of
from lyrics.vocabulary import Vocabulary

WORDS = "光 乡 山 天 风 心 你 雨 走 说 了 月亮 故乡 流浪 江山 春风 真心 细雨 消息 不停 夜未央 朝阳 love 月光曲".split()


@pytest.fixture(scope="module")
def dictionary():
    return RhymeDictionary(Vocabulary([b"", b"", *(word.encode() for word in WORDS), b"\n"], len(WORDS) + 2, 1))


def test_exact_and_near(dictionary):
    page = dictionary.find("轻轻唱")
    assert page.name == "江阳辙"
    assert page.characters == ["光", "乡"]
    assert page.words == ["月亮", "故乡", "流浪", "朝阳"]
    assert page.near == ["山", "天", "江山"]


@pytest.mark.parametrize(
    ("line", "same", "near"),
    [("风", ["风"], ["心"]), ("心", ["心"], ["风"]), ("走", ["走"], ["说"]), ("雨", ["雨"], ["你"])],
)
def test_near_classes_are_apart(dictionary, line, same, near):
    """an–ang、en–eng、in–ing、o–ou、i–ü：听来相近，不混在同韵里。"""
    page = dictionary.find(line)
    assert set(same) <= set(page.characters)
    assert not set(near) & set(page.characters)
    assert set(near) <= set(page.near)


def test_double_rhymes(dictionary):
    """末两字都押：故乡 – 不想；自己不算。"""
    assert dictionary.find("普降").double == ["故乡"]
    assert dictionary.find("我的故乡").double == []
    assert dictionary.find("乡").double == []


def test_a_chosen_reading(dictionary):
    assert dictionary.find("走了").name == "梭坡辙"
    assert dictionary.find("走了", "遥条").name == "遥条辙"
    assert dictionary.find("love") is None
    assert dictionary.find("") is None
    assert rhyme_kind("女") == "一七ü"


@pytest.mark.parametrize(
    ("line", "readings"),
    [
        ("他们走了", ["梭坡", "遥条"]),
        ("何日还", ["言前", "姑苏", "怀来"]),
        ("睡不着", ["遥条", "梭坡"]),
        ("月", []),
        ("", []),
    ],
)
def test_unsure_readings(line, readings):
    """日常有几种读音的才问；照上下文的在前。"""
    assert readings_of(line) == readings
