"""去重：大半相同的歌只留先读到的一首。"""

import pytest
from workshop import keys_of, make_lines

from corpus import near_copies as near_copies_module
from corpus.near_copies import COMMON_SPAN, near_copies


def test_identical_songs_are_kept_once():
    """内容相同（分行、标点、大小写之外）的只留先读到的。"""
    lines = make_lines(1)
    keys = keys_of(lines, make_lines(2), ["，".join(lines).replace("\n", "")], [line + "！" for line in lines])
    assert near_copies(keys) == {2: 0, 3: 0}


def test_identical_songs_leave_before_the_search(monkeypatch):
    """60 首各 99 份：只在 60 首里找大半相同的，内存与 60 首一样。"""
    searched = []
    original = near_copies_module._candidate_pairs
    monkeypatch.setattr(
        near_copies_module, "_candidate_pairs", lambda keys: searched.append(len(keys)) or original(keys)
    )
    keys = keys_of(*(make_lines(seed) for seed in range(60)))
    assert near_copies(keys * 99) == {index: index % 60 for index in range(60, 60 * 99)}
    assert searched == [60]


def test_live_version_is_a_near_copy():
    """现场版：副歌多唱两遍，中间加一句话。"""
    lines = make_lines(1, 16)
    live = ["大家好不好", *lines, *lines[8:], "谢谢大家", *lines[8:]]
    assert near_copies(keys_of(make_lines(5), lines, live)) == {2: 1}
    assert near_copies(keys_of(live, lines)) == {1: 0}


def test_cover_with_changed_lines_is_a_near_copy():
    """翻唱：四分之一的行改了词。"""
    lines = make_lines(1, 16)
    cover = [make_lines(99, 16)[n] if n % 4 == 0 else line for n, line in enumerate(lines)]
    assert near_copies(keys_of(lines, cover)) == {1: 0}


def test_excerpt_is_a_near_copy():
    """只有半首的版本也算同一首。"""
    lines = make_lines(1, 16)
    assert near_copies(keys_of(lines, lines[:8])) == {1: 0}


def test_traditional_you_is_a_near_copy():
    """妳与你不作区别。"""
    lines = ["我在等你的消息", "你说你会再回来", "夜里想你又想你", "你是风里的一盏灯"]
    assert near_copies(keys_of(lines, [line.replace("你", "妳") for line in lines])) == {1: 0}


def test_songs_sharing_a_chorus_line_both_stay():
    """不同的歌有一两句相同，都留下。"""
    first, second = make_lines(1, 16), make_lines(2, 16)
    second[7] = second[12] = first[7]
    assert near_copies(keys_of(first, second)) == {}


def test_unrelated_songs_stay():
    """互不相干的歌一首不少。"""
    assert near_copies(keys_of(*(make_lines(seed) for seed in range(300)))) == {}


@pytest.mark.parametrize("lines", [["今夜我在风里等你来"] * 20, ["啦啦啦啦啦啦啦"] * 3, ["我爱你你爱我"] * 12])
def test_repetitive_songs_are_found_too(lines):
    """一句话反复唱的歌，再来一份也要认出。"""
    assert near_copies(keys_of(make_lines(1), lines, lines)) == {2: 1}


def test_song_present_very_often():
    """被翻唱上百次的歌也只留一首。"""
    versions = [make_lines(1, 16) for _ in range(COMMON_SPAN + 30)]
    for number, version in enumerate(versions):
        version[number % 16] = make_lines(1000 + number, 1)[0]
    assert set(near_copies(keys_of(*versions)).values()) == {0}
    assert len(near_copies(keys_of(*versions))) == len(versions) - 1


@pytest.mark.parametrize("keys", [[], ["今夜"], ["今夜", "今夜我"], [make_lines(1)[0]]])
def test_tiny_input_has_no_copies(keys):
    """极小的输入不出错。"""
    assert near_copies(keys) == {}
