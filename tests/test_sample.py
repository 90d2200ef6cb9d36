"""自带样例 ChineseLyrics/sample.json：格式、分量，以及每首都是一首不同的歌。"""

import json
import re
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path

import pytest

from corpus.cleaning import RawSong, Song, clean_song
from corpus.near_copies import content_key, near_copies
from lyrics.sound import RHYME_CLASSES, rhyme_class, sung_count

SAMPLE = Path(__file__).resolve().parent.parent / "ChineseLyrics" / "sample.json"
FORMS = Path(__file__).with_name("sample_forms.json")


@pytest.fixture(scope="module")
def songs():
    return json.loads(SAMPLE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def forms():
    return json.loads(FORMS.read_text(encoding="utf-8"))


def lines_of(song) -> list[str]:
    return [line for line in song["lyric"] if line]


def bare(line: str) -> str:
    return re.sub(r"\W", "", line)


@pytest.fixture(scope="module")
def songs_with(songs):
    """每种唱词（不计空格）在哪几首里。"""
    found = defaultdict(set)
    for number, song in enumerate(songs):
        for line in lines_of(song):
            found[bare(line)].add(number)
    return found


def test_schema(songs):
    """每首都是 {name, singer, lyric: [一行行]}；节之间一个空行，首尾没有。"""
    assert isinstance(songs, list)
    for song in songs:
        assert set(song) == {"name", "singer", "lyric"}, song
        assert isinstance(song["lyric"], list), song["name"]
        for value in (song["name"], song["singer"], *lines_of(song)):
            assert isinstance(value, str), song["name"]
            assert value.strip() == value != "", song["name"]
            assert "\n" not in value, song["name"]
        assert "" in song["lyric"][1:-1], song["name"]
        assert song["lyric"][0], song["name"]
        assert song["lyric"][-1], song["name"]
        assert all(line or after for line, after in pairwise(song["lyric"])), song["name"]


def test_large_enough(songs):
    """至少 1,000 首、30 万汉字。"""
    assert len(songs) >= 1000
    assert sum(len(re.findall("[\u4e00-\u9fff]", line)) for song in songs for line in song["lyric"]) >= 300_000


def test_lines_can_be_sung(songs):
    """一行不超过 24 字；九成五在 3 到 15 字之间。"""
    lengths = [sung_count(line) for song in songs for line in lines_of(song)]
    assert max(lengths) <= 24
    assert sum(3 <= length <= 15 for length in lengths) >= 0.95 * len(lengths)


def test_titles_are_distinct(songs):
    """没有两首同名的歌。"""
    assert [name for name, count in Counter(song["name"] for song in songs).items() if count > 1] == []


def test_no_line_is_in_two_songs(songs_with):
    """六个字以上的一行只在一首歌里。"""
    assert [line for line, where in songs_with.items() if len(line) >= 6 and len(where) > 1] == []


def test_no_two_lines_are_nearly_the_same(songs_with):
    """不同的歌里，没有两行七个字以上的只差两个字：不是套着别的一行写的。"""
    assert list(nearly_the_same([line for line in songs_with if len(line) >= 7], songs_with)) == []


def nearly_the_same(lines, songs_with):
    """差两次编辑以内的两行，至少有一个三等分的小段原样在另一行差不多的地方。"""
    found = defaultdict(set)
    for line in lines:
        for third in {(len(line) + edits) // 3 for edits in (-2, 0, 2)}:
            for place in range(len(line) - third + 1):
                found[line[place : place + third]].add(line)
    for line in lines:
        third = len(line) // 3
        near = set().union(*(found[line[start : start + third]] for start in (0, third, 2 * third)))
        for other in near:
            if other > line and not songs_with[line] & songs_with[other] and within_two(line, other):
                yield line, other


def within_two(a: str, b: str) -> bool:
    """编辑距离不过二。"""
    if abs(len(a) - len(b)) > 2:
        return False
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        above, row = row, [i]
        for j, right in enumerate(b, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (left != right)))
        if min(row) > 2:
            return False
    return row[-1] <= 2


def test_shapes_differ(songs):
    """同样一串行长的歌不超过百分之二。"""
    shapes = Counter(tuple(map(sung_count, lines_of(song))) for song in songs)
    assert max(shapes.values()) <= 0.02 * len(songs)


STOCK = (  # 歌里用滥的
    "月亮 月光 星星 星光 黄昏 夕阳 晚风 路灯 影子 背影 脚印 玻璃 窗外 眼泪 泪水 温柔 时光 岁月 青春 远方 梦里 "
    "拥抱 微笑 沉默 孤单 寂寞 永远 世界 天空 海浪 潮水 火车 列车 月台 站台 咖啡 车票 行李 信封 邮筒 收音机 "
    "掌心 手心 口袋 抽屉 皱纹 白发 屋檐 巷口 炊烟 秋千 流星 彩虹 烟火 余生 人间 红尘 沧桑 倔强 自由 翅膀 "
    "老师 电话 师傅 耳朵 脖子 尾巴 夜里 天亮 今晚 回家 楼下 嘴里 手里"
)


def test_stock_images_are_rare(songs):
    """用滥的意象，每个至多在百分之三的歌里。"""
    texts = ["\n".join(song["lyric"]) for song in songs]
    counts = {word: sum(word in text for text in texts) for word in STOCK.split()}
    assert {word: count for word, count in counts.items() if count > 0.03 * len(songs)} == {}


def test_forms_describe_the_songs(songs, forms):
    """tests/sample_forms.json：每首的题材、口吻、各节的韵式，与歌对得上；题材、口吻多样。"""
    assert [form["name"] for form in forms] == [song["name"] for song in songs]
    for song, form in zip(songs, forms, strict=True):
        stanzas = [stanza.split("\n") for stanza in "\n".join(song["lyric"]).split("\n\n")]
        assert [len(stanza) for stanza in stanzas] == [len(scheme) for scheme in form["stanzas"]], song["name"]
        assert form["theme"], song["name"]
        assert form["voice"], song["name"]
    assert len({form["theme"] for form in forms}) >= 100
    assert len({form["voice"] for form in forms}) >= 6


def test_songs_rhyme_where_their_form_asks(songs, forms):
    """一节里同一个字母的行互押：每首至少 75% 押上；十三辙都用到。"""
    used = set()
    for song, form in zip(songs, forms, strict=True):
        asked = kept = 0
        lines = iter(lines_of(song))
        for scheme in form["stanzas"]:
            classes = defaultdict(list)
            for letter in scheme:
                classes[letter].append(rhyme_class(next(lines)))
            for letter, found in classes.items():
                if letter != "-" and len(found) > 1:
                    (name, count), *_ = Counter(found).most_common(1)
                    asked, kept = asked + len(found), kept + count
                    used.add(name)
        assert kept >= 0.75 * asked, song["name"]
    assert used >= set(RHYME_CLASSES)


def test_cleaning_keeps_every_line(songs):
    """没有一行被当成制作信息或段落标记删改，分节也照原样。"""
    for song in songs:
        cleaned = clean_song(RawSong(song["name"], song["singer"], song["lyric"], ""))
        assert isinstance(cleaned, Song), (song["name"], cleaned)
        assert cleaned.text.split("\n") == song["lyric"], song["name"]
        assert (cleaned.name, cleaned.singer) == (song["name"], song["singer"])


def test_no_near_copies(songs):
    """去重不会去掉任何一首。"""
    copies = near_copies([content_key("\n".join(song["lyric"])) for song in songs])
    assert [(songs[later]["name"], songs[earlier]["name"]) for later, earlier in copies.items()] == []
