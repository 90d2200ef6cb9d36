"""清洗：制作信息与标记去掉，唱的一字不少，舍弃的各有原因。"""

import pytest
from workshop import make_song, read, write_json

from corpus.cleaning import LONGEST_NAME, RawSong, Song, clean_name, clean_song, clean_text
from corpus.songs import read_songs

CREDITS = """
作词：某人
作曲 : 某人
编曲：某人
词：某人
曲: 某人
词/曲：某人
词曲：某人
作词 某人
作词/作曲：某人
制作人：某人
监制：某人
混音：某人
和声：某人
吉他：某人
OP：某某公司
SP：某某公司
OP/SP：某某公司
op: Some Music
ISRC：CN-A01-23-00001
Lyrics by：Someone
Lyrics by Someone
Lyricist: Someone
Composer：Someone
Produced by Someone
Guitar: Someone
原唱：某人
录音室：某某录音棚
【作词：某人】
未经著作权人许可，不得翻唱
此歌曲为没有填词的纯音乐，请您欣赏
https://example.com/song
""".strip().split("\n")

MARKS = """
[Chorus]
[Verse 1]
【副歌】
(间奏)
（间奏）
副歌：
主歌A
Verse 2:
Pre-Chorus
Outro
Repeat *2
[00:12.34]
[ti:如果爱]
----
……
♪♪♪
""".strip().split("\n")

SUNG = """
词不达意的我
妈妈说：要回家
鼓起勇气向前走
曲终人散
合唱团的歌
他说：我们走吧
作曲家的梦
低音炮轰着胸膛
音乐响起来
编一首曲子给你
副歌里的你
间奏太长 眼泪太短
制作一场美梦
钢琴声里你走了
歌手的名字没有人记得
男人的眼泪
合起来的伞
录音机里的你
Lyrics of love
Music is my life
optimistic boy
speak to me
我乘以二 等于我们
3月的雨落在5月的窗
你问我：爱是什么？
1999 那一年
(你还爱我吗)
""".strip().split("\n")


@pytest.mark.parametrize("line", CREDITS)
def test_credits_are_removed(line):
    """制作信息整行去掉，上下的歌词不动。"""
    assert clean_text(f"今夜我\n{line}\n在风里") == "今夜我\n在风里"


@pytest.mark.parametrize("line", MARKS)
def test_marks_are_removed(line):
    """段落标记、标签、空有符号的行整行去掉。"""
    assert clean_text(f"今夜我\n{line}\n在风里") == "今夜我\n在风里"


@pytest.mark.parametrize("line", SUNG)
def test_sung_lines_survive(line):
    """唱出来的行一个字也不能少。"""
    assert clean_text(f"今夜我\n{line}\n在风里") == f"今夜我\n{line}\n在风里"


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[00:12.34]今夜我", "今夜我"),
        ("[00:12.34][01:12]今夜我", "今夜我\n今夜我"),
        ("<00:12.34>今<00:13.00>夜我", "今夜我"),
        ("[Chorus] 今夜我", "今夜我"),
        ("【副歌】今夜我", "今夜我"),
        ("男：今夜我", "今夜我"),
        ("（女）：今夜我", "今夜我"),
        ("【男】今夜我", "今夜我"),
        ("（合）上眼睛", "（合）上眼睛"),
        ("合：今夜我", "今夜我"),
        ("今夜我×2", "今夜我"),
        ("今夜我 (×2)", "今夜我"),
        ("今夜我 x3", "今夜我"),
        ("今夜我<br/>在风里<BR>等你<br />啊", "今夜我\n在风里\n等你\n啊"),
        ("<p>今夜我</p><p>在风里</p>", "今夜我\n在风里"),
        ('<span class="a">今夜</span>我', "今夜我"),
        ("今夜&nbsp;我", "今夜 我"),
        ("你&amp;我", "你&我"),
        ("&lt;br&gt;今夜&#25105;", "今夜我"),
        ("\u3000\u3000今夜\u3000\u3000我\u3000", "今夜 我"),
        ("  今夜\t我\u00a0 ", "今夜 我"),
        ("今\u200b夜\ufeff我\u200d\u2060", "今夜我"),
        ("今\ud800夜我\udfff", "今夜我"),
        ("今\x00夜\x1b我", "今夜我"),
        ("今夜我\ue000\uf8ff", "今夜我"),
        ("今夜我\r\n在风里\r等你\u2028啊", "今夜我\n在风里\n等你\n啊"),
        ("\n\n今夜我\n\n\n在风里\n", "今夜我\n在风里"),
        ("今夜我，在风里！", "今夜我，在风里！"),
        ("", ""),
    ],
)
def test_cleaning_inside_lines(before, after):
    """行内的时间、标记、HTML、空白、看不见的字符。"""
    assert clean_text(before) == after


def test_cleaning_is_stable():
    """洗过的再洗一遍不变：清洗不会一层层剥掉歌词。"""
    once = clean_text("\n".join(CREDITS + MARKS + SUNG + ["[Chorus] 男：今夜我 ×2", "&lt;br&gt;今夜"]))
    assert clean_text(once) == once


def test_cleaned_text_is_valid_unicode(tmp_path):
    """JSON 里写成转义的半个代理对不会带进分词器。"""
    path = tmp_path / "a.json"
    path.write_text('[{"name": "\\ud800爱\\n恨", "singer": "\\udc00", "lyric": "\\ud83d今夜我在风里等你来唱歌"}]')
    song = clean_song(read(path)[0])
    assert song == Song("爱 恨", "", "今夜我在风里等你来唱歌")
    "".join(song).encode("utf-8")


def test_names_are_cleaned():
    """歌名与歌手是一行干净文字；数成为文字，几个歌手连起来，别的当作没有。"""
    assert clean_name("  如果\u3000爱\n&amp;恨\u200b ") == "如果 爱 &恨"
    assert [clean_name(name) for name in (None, True, {}, [], "")] == [""] * 5
    assert [clean_name(name) for name in (1874, 7.0, 3.5, ["甲", "乙"], ["甲", None, 5])] == [
        "1874",
        "7",
        "3.5",
        "甲/乙",
        "甲/5",
    ]
    assert clean_name([{"id": 1, "name": "甲"}, {"name": "乙"}]) == "甲/乙"
    assert clean_name("爱&amp;amp;恨\\n上下") == "爱&恨 上下"
    assert len(clean_name("长" * 500)) == LONGEST_NAME


@pytest.mark.parametrize(
    ("element", "reason"),
    [
        ({"name": "a", "singer": "b"}, "缺少 lyric"),
        ({"lyric": None}, "缺少 lyric"),
        ({"lyric": 5}, "格式不对"),
        ({"lyric": {"1": "今夜我在风里等你来唱歌"}}, "格式不对"),
        ({"lyric": [None, 5]}, "格式不对"),
        (["今夜我在风里等你来唱歌", "山高水远路灯下"], "格式不对"),
        ("今夜我在风里等你来唱歌", "格式不对"),
        (None, "格式不对"),
        (5, "格式不对"),
        ({"lyric": []}, "歌词为空"),
        ({"lyric": " \n\u3000"}, "歌词为空"),
        ({"lyric": ["作词：某人", "[Chorus]"]}, "清洗后为空"),
        ({"lyric": "Hello my love, hello again"}, "汉字不足 10 个"),
        ({"lyric": "今夜我在风里等你啊"}, "汉字不足 10 个"),
    ],
)
def test_drop_reasons(tmp_path, element, reason):
    """每种不能用的歌各有自己的原因，报告里数得清、找得到。"""
    path = write_json(tmp_path / "a.json", [make_song(1), element])
    report = {}
    assert len(read_songs([path], report, lambda message: None)[0]) == 1
    assert report["dropped"] == {reason: 1}
    assert report["dropped_examples"] == {reason: f"{path} 第 2 首"}
    assert report["songs_read"] == 2


def test_ten_characters_are_enough():
    """恰好 10 个汉字的歌留下。"""
    assert isinstance(clean_song(RawSong("", "", "今夜我在风里等你来啊", "")), Song)
