"""分节：空行留一个，隔行空的不算，重复的段落自成一节。"""

import random

import pytest
from workshop import Workshop, make_song

from corpus.cleaning import RawSong, Song, clean_song, clean_text
from corpus.stanzas import with_stanzas

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
