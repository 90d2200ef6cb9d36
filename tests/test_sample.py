"""自带样例 ChineseLyrics/sample.json：格式、分量，以及每首都是一首不同的歌。"""

import json
import re
from collections import Counter
from itertools import combinations
from pathlib import Path

import pytest

from corpus.cleaning import RawSong, Song, clean_song
from corpus.near_copies import content_key, near_copies

SAMPLE = Path(__file__).resolve().parent.parent / "ChineseLyrics" / "sample.json"


@pytest.fixture(scope="module")
def songs():
    return json.loads(SAMPLE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def line_sets(songs):
    return [set(song["lyric"]) for song in songs]


def test_schema(songs):
    """每首都是 {name, singer, lyric: [一行行]}，没有空的。"""
    assert isinstance(songs, list)
    for song in songs:
        assert set(song) == {"name", "singer", "lyric"}, song
        assert isinstance(song["lyric"], list), song["name"]
        assert song["lyric"], song["name"]
        for value in (song["name"], song["singer"], *song["lyric"]):
            assert isinstance(value, str), song["name"]
            assert value.strip() == value != "", song["name"]
            assert "\n" not in value, song["name"]


def test_large_enough(songs):
    """至少 240 首、6 万汉字，cpu 预设才练得出东西。"""
    assert len(songs) >= 240
    assert sum(len(re.findall("[\u4e00-\u9fff]", line)) for song in songs for line in song["lyric"]) >= 60_000


def test_lines_can_be_sung(songs):
    """一行不超过 24 字。"""
    assert [line for song in songs for line in song["lyric"] if len(line) > 24] == []


def test_titles_are_distinct(songs):
    """没有两首同名的歌。"""
    assert [name for name, count in Counter(song["name"] for song in songs).items() if count > 1] == []


def test_few_lines_are_shared(line_sets):
    """两首歌共有的行不超过全部不同行的 2%：不是套模板写的。"""
    counts = Counter(line for lines in line_sets for line in lines)
    shared = [line for line, count in counts.items() if count > 1]
    assert len(shared) <= 0.02 * len(counts), shared[:20]


def test_no_two_songs_overlap(songs, line_sets):
    """任何两首共有的行少于较小一首的 30%。"""
    overlapping = [
        (songs[a]["name"], songs[b]["name"])
        for a, b in combinations(range(len(songs)), 2)
        if len(line_sets[a] & line_sets[b]) >= 0.3 * min(len(line_sets[a]), len(line_sets[b]))
    ]
    assert overlapping == []


def test_cleaning_keeps_every_line(songs):
    """没有一行被当成制作信息或段落标记删改。"""
    for song in songs:
        cleaned = clean_song(RawSong(song["name"], song["singer"], song["lyric"], ""))
        assert isinstance(cleaned, Song), (song["name"], cleaned)
        assert cleaned.text.split("\n") == song["lyric"], song["name"]
        assert (cleaned.name, cleaned.singer) == (song["name"], song["singer"])


def test_no_near_copies(songs):
    """去重不会去掉任何一首。"""
    copies = near_copies([content_key("\n".join(song["lyric"])) for song in songs])
    assert [(songs[later]["name"], songs[earlier]["name"]) for later, earlier in copies.items()] == []
