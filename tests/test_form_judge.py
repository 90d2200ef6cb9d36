"""句式的裁判：每个函数一个手算的例子；作样子的五十首歌。"""

import json
from pathlib import Path

import form_judge as judge
import pytest

from corpus.cleaning import RawSong, clean_song
from corpus.near_copies import content_key
from corpus.songs import split_songs

SAMPLE = Path(__file__).resolve().parent.parent / "ChineseLyrics" / "sample.json"


def test_sung_characters():
    """外文词、数目各一个，标点与空格不算。"""
    assert judge.sung("Say OK，我 2024 走了！") == ["Say", "OK", "我", "2024", "走", "了"]


def test_lengths():
    """多写、少写的行都不合。"""
    assert judge.lengths_kept(["春风又到", "江南 岸"], [4, 3]) == [True, True]
    assert judge.lengths_kept(["春风又到"], [5, 3]) == [False, False]
    assert judge.lengths_kept(["春风又到", "江南"], [4]) == [True, False]


@pytest.mark.parametrize(
    ("final", "name"),
    [("uang", "ang"), ("iong", "eng"), ("ueng", "eng"), ("van", "an"), ("uen", "en"), ("ve", "ie"), ("uo", "o")]
    + [("e", "o"), ("iao", "ao"), ("uei", "ei"), ("iou", "ou"), ("er", "i"), ("v", "i"), ("uai", "ai"), ("ua", "a")],
)
def test_classes(final, name):
    assert judge.class_of(final) == name


def test_rhymes():
    """多音字照上下文；儿化两读；标点不算；外文收尾的没有。"""
    assert judge.rhymes_of("走过长街，") == {"ie"}
    assert judge.rhymes_of("快乐") == {"o"}
    assert judge.rhymes_of("一朵花儿") == {"a", "i"}
    assert judge.rhymes_of("睡不着") == {"ao", "o"}
    assert judge.rhymes_of("say ok") == set()


def test_rhyme_groups():
    """同字母的照最多的一辙；没有字母的不论。"""
    lines = ["天边的月亮", "照着海", "我在远方", "你不在", "想起了家"]
    assert judge.rhymes_kept(lines, ["A", "", "A", "B", "A"]) == [True, None, True, True, False]


def test_tones():
    """一二声平，三四声仄，轻声与外文是中；多音字照上下文。"""
    assert judge.tones_of("春花秋月何时了，往事知多少") == "平平平仄平平中仄仄平平仄"
    assert judge.tones_of("我们 OK 吧") == "仄中中中"
    assert judge.tones_of("长大") == "仄仄"
    assert judge.tones_of("长江") == "平平"


def test_tones_kept():
    """中处不论；放宽时只看二四六与末字；字数不同的全不合。"""
    assert judge.tones_kept("往事知多少", "中仄平平仄") == [True] * 4
    assert judge.tones_kept("往事知多少", "平仄平平平") == [False, True, True, True, False]
    assert judge.tones_kept("往事知多少", "平仄仄平平", loose=True) == [True, True, False]
    assert judge.tones_kept("往事", "平仄仄平平") == [False] * 5


def test_repeats():
    """同名的各行一字不差；空格不算。"""
    assert judge.repeats_kept(["争渡", "走吧", "争 渡", "争度"], ["叠", "", "叠", "叠"]) == [True, None, True, False]


def test_breaks():
    """停顿落在词里的不合；四字的词，两半都是词的，中间可停；空格不给切分程序提示。"""
    assert judge.places_of("4，2-3") == [4, 6]
    assert judge.marked_breaks("春天 缝进 衣裳里") == "2-2-3"
    assert judge.breaks_kept("我们喜欢唱歌", "2-2-2") == [True, True]
    assert judge.breaks_kept("我们喜欢唱歌", "3-3") == [False]
    assert judge.breaks_kept("我们喜 欢唱歌", "3-3") == [False]
    assert judge.breaks_kept("一片汪洋", "2-2") == [True]


def test_copied_spans():
    """四个字连着相同才算，跨行的也算；拼音文字按词，不按字母。"""
    assert judge.copied_spans("小楼昨夜\n又东风", "昨夜又东来") == ["昨夜又东"]
    assert judge.copied_spans("小楼昨夜又", "昨夜又东风") == []
    assert judge.copied_spans("a b c d", "xa b c dy") == []


def texts(kind: str) -> list[str]:
    return [path.read_text(encoding="utf-8").rstrip("\n") for path in sorted((judge.LIKE / kind).glob("*.txt"))]


def test_fifty_songs():
    """两半各 25 首；半数有一节一字不差地回来；标过的每首大半的行有停顿，重唱的行标得一样。"""
    marked, plain = texts("marked"), texts("plain")
    assert (len(marked), len(plain)) == (25, 25)
    stanzas = [text.split("\n\n") for text in marked + plain]
    assert sum(len(set(found)) < len(found) for found in stanzas) >= 25
    for text in marked:
        lines = {line for line in text.split("\n") if line}
        assert len({line.replace(" ", "") for line in lines}) == len(lines)
        assert sum(" " in line for line in lines) > 0.9 * len(lines)


def test_songs_are_held_out():
    """取自样例的都在留出的一半里，新写的不在样例里。"""
    songs = [
        clean_song(RawSong(s["name"], s["singer"], s["lyric"], "", "", False))
        for s in json.loads(SAMPLE.read_text(encoding="utf-8"))
    ]
    keys = [content_key(song.text) for song in songs]
    train, held_out, _ = split_songs(keys, 0.05)
    own = [content_key(text) for kind in ("marked", "plain") for text in texts(kind)]
    assert not {keys[index] for index in train} & set(own)
    assert len({keys[index] for index in held_out} & set(own)) == 36
