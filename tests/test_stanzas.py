"""分节：空行留一个，隔行空的不算，重复的段落自成一节。"""

import json
import random
from pathlib import Path

import pytest
from workshop import Workshop, make_song

from corpus.cleaning import RawSong, Song, clean_song, clean_text
from corpus.formats import read_file
from corpus.stanzas import with_stanzas

REPOSITORY = Path(__file__).resolve().parent.parent
VERSE = ["今夜我在风里等你", "山高水远路灯下", "雨落长街人散去", "故乡月亮照着河"]
CHORUS = ["少年唱歌走过四季", "花开的时候不见你", "等到雪落满了山冈"]


def shown(lines: str) -> str:
    return "|".join(with_stanzas(lines.split("/")))


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("甲/乙//丙/丁", "甲|乙||丙|丁"),
        ("甲/乙/////丙/丁", "甲|乙||丙|丁"),
        ("//甲/乙//丙/丁//", "甲|乙||丙|丁"),
        ("甲/乙/……/丙/丁", "甲|乙||丙|丁"),
        ("甲//乙//丙//丁", "甲|乙|丙|丁"),
        ("甲//乙///丙//丁", "甲|乙||丙|丁"),
        ("甲//乙////丙//丁///戊//己", "甲|乙||丙|丁||戊|己"),
        ("甲/乙/丙/丁", "甲|乙|丙|丁"),
        ("甲//乙", "甲|乙"),
        ("甲", "甲"),
        ("", ""),
    ],
)
def test_blank_lines(written, read):
    """一处或几处空行是一个；隔行都空的，空得更多才是分节；首尾没有。"""
    assert shown(written) == read


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("一/二/三/四/甲/乙/丙/五/六/七/甲/乙/丙", "一|二|三|四||甲|乙|丙||五|六|七||甲|乙|丙"),
        ("甲/乙/丙/一/二/甲/乙/丙", "甲|乙|丙||一|二||甲|乙|丙"),
        ("甲/乙/丙/甲/乙/丙", "甲|乙|丙||甲|乙|丙"),
        ("一/甲/乙/丙/二/甲/乙/丙/三", "一|甲|乙|丙||二|甲|乙|丙|三"),
        ("甲/乙/一/二/甲/乙", "甲|乙|一|二|甲|乙"),
        ("啦/啦/啦/啦/啦/啦/啦/啦", "啦|啦|啦||啦|啦|啦|啦|啦"),
    ],
)
def test_repeated_blocks(written, read):
    """没有空行的歌：一字不差重复三行以上的是一节；不留一行的节。"""
    assert all(part for part in shown(written).split("||"))
    if "啦" not in written:
        assert shown(written) == read


def test_blank_lines_win_over_repeats():
    """写明了分节的，不再猜。"""
    lines = [*CHORUS, *VERSE[:2], "", *CHORUS, *VERSE[2:]]
    assert with_stanzas(lines) == lines


def test_reading_twice_changes_nothing():
    """分好节的再读一遍不变，句子一句不少。"""
    draw = random.Random(3)
    for _ in range(3000):
        lines = [draw.choice("甲乙丙丁戊己庚辛\0\0\0").replace("\0", "") for _ in range(draw.randint(0, 30))]
        once = with_stanzas(lines)
        assert with_stanzas(once) == once
        assert [line for line in once if line] == [line for line in lines if line]
        assert "\n\n\n" not in "\n".join(once)
        assert not once or (once[0] and once[-1])


@pytest.mark.parametrize(
    "lyric",
    [
        "\n".join([*VERSE, "", *CHORUS]),
        "\r\n".join([*VERSE, "", "", "", *CHORUS]),
        "\n".join([*VERSE, "\u3000", *CHORUS]),
        "<br>".join([*VERSE, "", *CHORUS]),
        "\\n".join([*VERSE, "", *CHORUS]),
        "\n".join([*VERSE, "[副歌]", *CHORUS]),
        "\n".join([*VERSE, "", "[Chorus]", "", *CHORUS]),
        "\n".join([*VERSE, f"[Chorus] {CHORUS[0]}", *CHORUS[1:]]),
        "\n".join([*VERSE, "（间奏）", *CHORUS]),
        "\n".join(["作词：某人", "作曲：某人", "", *VERSE, "", *CHORUS, "", "（未经许可不得翻唱）"]),
        "\n\n".join(["\n\n".join(VERSE), "", "\n\n".join(CHORUS)]),
        [*VERSE, "", *CHORUS],
        [VERSE, CHORUS],
        ["\n".join(VERSE), "\n".join(CHORUS)],
        "\n".join(f"[00:{10 + n}.00]{line}" for n, line in enumerate([*VERSE, "", *CHORUS])),
        "".join(f"[00:{10 + 2 * n}.00]{line}\n[00:{11 + 2 * n}.00]\n" for n, line in enumerate(VERSE))
        + "[00:30.00]\n"
        + "".join(f"[00:{40 + 2 * n}.00]{line}\n[00:{41 + 2 * n}.00]\n" for n, line in enumerate(CHORUS)),
    ],
    ids=str,
)
def test_stanzas_in_every_way_of_writing(lyric):
    """各种写法的歌，两节之间都恰空一行。"""
    song = clean_song(RawSong("歌", "人", lyric, ""))
    assert isinstance(song, Song)
    assert song.text == "\n".join([*VERSE, "", *CHORUS])


def test_subtitles_have_no_stanzas():
    """字幕每一条之间的空行不是分节。"""
    cues = [VERSE[:2], VERSE[2:], CHORUS[:2], CHORUS[2:]]
    text = "\n".join(
        f"{n}\n00:00:{10 + n},000 --> 00:00:{11 + n},000\n" + "\n".join(cue) + "\n" for n, cue in enumerate(cues, 1)
    )
    assert clean_text(text) == "\n".join([*VERSE, *CHORUS])


def test_stanzas_reach_the_tokens(tmp_path):
    """词元流里两个换行相连，读出来还是原样；报告数得出几处。"""
    shop = Workshop(tmp_path)
    songs = [make_song(number) for number in range(5)]
    for song in songs:
        song["lyric"] = [*song["lyric"][:3], "", *song["lyric"][3:]]
    shop.write("a.json", songs)
    corpus = shop.prepare()
    assert corpus.report["stanza_breaks"] == corpus.report["songs"]
    text = corpus.tokenizer.decode(corpus.train.tolist())
    assert text.count("\n\n") == corpus.report["train_songs"]


# 每一种：（怎样写的，读出来的）；V、C、W 是三段，‖ 是分节
V, C, W = VERSE, CHORUS, ["后来我们各自远行", "把旧的名字都忘记", "窗外的雨还没停", "远方的信没有寄"]
LAST, CHANGED = "我还站在原来的地方", "我还站在更远的地方"


def line_up(*parts) -> str:
    return "\n".join(line for part in parts for line in ([part] if isinstance(part, str) else part))


WRITTEN = {
    "副歌改了末句": (line_up(V, C, LAST, W, C, CHANGED), [V, [*C, LAST], W, [*C, CHANGED]]),
    "副歌后面的一句也重复": (
        line_up(V[:2], C, LAST, W[:2], C, LAST, W[2:], C, "从此再也没有归期"),
        [V[:2], [*C, LAST], W[:2], [*C, LAST], W[2:], [*C, "从此再也没有归期"]],
    ),
    "对唱": (line_up(V, "", "男：", C[0], "女：", C[1], "合：", C[2], "我们一起唱", "", W), [V, [*C, "我们一起唱"], W]),
    "没有空行的对唱": (line_up("男：", V, "女：", W), [V, W]),
    "间奏里的制作信息": (line_up("作词：张三", "作曲：李四", V, "制作人：赵六", "混音：钱七", C), [V, C]),
    "隔行空而标记两旁不空": ("\n".join(["\n\n".join(V), "[副歌]", "\n\n".join(C)]), [V, C]),
    "一个 p 一节": ("".join("<p>" + "<br>".join(part) + "</p>" for part in (V, C, W)), [V, C, W]),
    "一个 div 一节": ("".join("<div>" + "<br/>\n".join(part) + "</div>\n" for part in (V, C)), [V, C]),
    "一行一个 p": ("".join(f"<p>{line}</p>" for line in V + C), [V + C]),
    "br 带属性": ('<br class="x">'.join([*V, "", *C]), [V, C]),
    "hr 与标题": ("<section>" + "<br>".join(V) + "<hr>" + "<br>".join(C) + "</section>", [V, C]),
    "第几段": (line_up("【第一段】", V, "【第二段】", W), [V, W]),
    "A 段": (line_up("【A段】", V, "【B段】", C), [V, C]),
    "写明乐器的间奏": (line_up(V, "（钢琴间奏）", C, "[间奏 8小节]", W), [V, C, W]),
    "一句的副歌": (
        line_up(V[:2], "", "等你啊等你", "", V[2:], "", "等你啊等你", "", C[:2], "", "等你啊等你"),
        [V[:2], ["等你啊等你"], V[2:], ["等你啊等你"], C[:2], ["等你啊等你"]],
    ),
    "声明夹在一节当中": (line_up(V[:2], "※ Mojim.com 魔镜歌词网", V[2:]), [V]),
    "合着写的时间": (
        "[00:10.00]"
        + V[0]
        + "\n[00:14.00]"
        + V[1]
        + "\n\n[01:00.00][00:20.00]"
        + C[0]
        + "\n[01:04.00][00:24.00]"
        + C[1]
        + "\n\n[00:40.00]"
        + W[0]
        + "\n[00:44.00]"
        + W[1]
        + "\n",
        [V[:2], C[:2], W[:2], C[:2]],
    ),
    "列表里的空": ([*V, None, *C], [V, C]),
    "对象里的空": (
        [*({"text": line} for line in V), {"time": 9, "text": None}, *({"text": line} for line in C)],
        [V, C],
    ),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_borders_are_where_they_were_written(name):
    lyric, stanzas = WRITTEN[name]
    song = clean_song(RawSong("歌", "人", lyric, ""))
    assert isinstance(song, Song)
    assert song.text.split("\n\n") == ["\n".join(stanza) for stanza in stanzas]


BOOKS = {
    "隔行空的一首": ("\n\n".join(["\n\n".join(V), "", "\n\n".join(C)]), 1),
    "编了号的各节": ("1. " + "\n".join(V) + "\n\n2. " + "\n".join(W), 1),
    "井号标的副歌": (line_up(V, "# " + C[0], C[1:], W, "# " + W[0] + "呀", W[1:]), 1),
    "两半之间空得多": (line_up(V, "", C, W, "", "", "", V[::-1], "", C, W[::-1]), 1),
    "编了号的歌名": ("1. 春风\n" + "\n".join(V) + "\n\n2. 山河万里\n" + "\n".join(W), 2),
}


@pytest.mark.parametrize("name", BOOKS)
def test_one_song_stays_one(tmp_path, name):
    """一首歌的几节不当作几首，头一句也不当作歌名丢掉；真有几首的照样分开。"""
    text, count = BOOKS[name]
    path = tmp_path / "歌.txt"
    path.write_text(text, encoding="utf-8")
    found = [clean_song(raw) for raw in read_file(path)]
    assert len(found) == count
    assert all(V[0] in song.text or W[0] in song.text for song in found)


def test_a_title_on_top_does_not_hide_the_repeats():
    """题目之下空了一行，别处没有空行：副歌照样认得出。"""
    text = clean_text("测试歌\n\n" + "\n".join(V + C + W + C))
    assert text.split("\n\n") == ["测试歌", *("\n".join(part) for part in (V, C, W, C))]


def test_borders_of_the_bundled_songs_without_their_blank_lines():
    """样例里有重复段落的歌去掉空行：认出的分节，二十处里有十九处真的是。"""
    songs = json.loads((REPOSITORY / "ChineseLyrics/sample.json").read_text(encoding="utf-8"))
    right = wrong = 0
    for song in songs:
        lines = [line for line in song["lyric"] if line]
        stanzas = "\n".join(song["lyric"]).split("\n\n")
        starts, place = set(), 0
        for stanza in stanzas:
            starts.add(place)
            place += stanza.count("\n") + 1
        found, place = set(), 0
        for line in with_stanzas(lines):
            found |= set() if line else {place}
            place += bool(line)
        right, wrong = right + len(found & starts), wrong + len(found - starts)
    assert right > 900
    assert wrong < right / 19
