"""播放器的歌词：同一首歌存成各种格式，读出来都是那几行；时间怎么写都去掉。"""

import json
import random
from pathlib import Path

import pytest
from workshop import VERSE, make_lines

from corpus.cleaning import RawSong, Song, clean_song, clean_text
from corpus.files import CorpusError
from corpus.formats import ENCRYPTED, NotLyrics, read_file
from corpus.karaoke import read_karaoke

LINES = ["风吹过旧街口的第一盏灯", "灯火落满 江南岸的夜晚", "Oh my love 别走（啦啦啦）", "再见"]
TEXT = "\n".join(LINES)


def words_of(line: str) -> list[str]:
    """一行切成要逐个唱的：汉字一个一个，外文一词一个，空格与标点跟着前面的。"""
    words: list[str] = []
    for letter in line:
        if words and (
            letter in " （）()，" or (letter.isascii() and words[-1][-1:].isascii() and words[-1][-1] != " ")
        ):
            words[-1] += letter
        else:
            words.append(letter)
    return words


def clock(milliseconds: int, form: str = "{:02d}:{:02d}.{:02d}") -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return form.format(seconds // 60, seconds % 60, rest // 10)


def timed(lines: list[str]) -> list[tuple[int, list[tuple[int, int, str]]]]:
    """[(行的起点, [(字的起点, 长, 字)])]，毫秒。"""
    found, now = [], 12_000
    for line in lines:
        start, words = now, []
        for word in words_of(line):
            words.append((now, 200, word))
            now += 200
        found.append((start, words))
        now += 1_000
    return found


def bracket_lrc(lines):
    return "\n".join(
        "".join(f"[{clock(at)}]{word}" for at, _, word in words) + f"[{clock(at + 200)}]"
        for _, words in timed(lines)
        for at in [words[-1][0]]
    )


def doubled_lrc(lines):
    return "\n".join(
        f"[{clock(start)}]" + "".join(f"[{clock(at)}]{word}" for at, _, word in words) for start, words in timed(lines)
    )


def enhanced_lrc(lines):
    return "\n".join(
        f"[{clock(start)}]" + "".join(f"<{clock(at)}>{word}" for at, _, word in words) for start, words in timed(lines)
    )


def padded_lrc(lines):
    return "\n".join(
        f"[{clock(start)}]" + "".join(f" <{clock(at)}> {word}" for at, _, word in words)
        for start, words in timed(lines)
    )


def qrc(lines):
    return "\n".join(
        f"[{start},{200 * len(words)}]" + "".join(f"{word}({at},{long})" for at, long, word in words)
        for start, words in timed(lines)
    )


def qrc_xml(lines):
    head = '<?xml version="1.0" encoding="utf-8"?>\n<QrcInfos>\n<QrcHeadInfo SaveTime="1" Version="100"/>\n'
    content = f"[ti:歌]\n[ar:人]\n[offset:0]\n{qrc(lines)}\n"
    return f'{head}<LyricInfo><Lyric_1 LyricType="1" LyricContent="{content}"/></LyricInfo></QrcInfos>'


def krc(lines):
    head = "[id:$00000000]\n[ar:人]\n[ti:歌]\n[hash:abc]\n[language:eyJjb250ZW50IjpbXX0=]\n"
    return head + "\n".join(
        f"[{start},{200 * len(words)}]" + "".join(f"<{at - start},{long},0>{word}" for at, long, word in words)
        for start, words in timed(lines)
    )


def yrc(lines):
    head = '{"t":0,"c":[{"tx":"作词: "},{"tx":"甲"}]}\n{"t":1000,"c":[{"tx":"编曲: "},{"tx":"乙","li":"http://a"}]}\n'
    return head + "\n".join(
        f"[{start},{200 * len(words)}]" + "".join(f"({at},{long},0){word}" for at, long, word in words)
        for start, words in timed(lines)
    )


def lys(lines):
    return "\n".join("[4]" + "".join(f"{word}({at},{long})" for at, long, word in words) for _, words in timed(lines))


def ttml(lines):
    def paragraph(start, words):
        spans = "".join(f'<span begin="{clock(at)}" end="{clock(at + long)}">{word}</span>' for at, long, word in words)
        other = '<span ttm:role="x-translation" xml:lang="en">the wind</span><span ttm:role="x-roman">feng</span>'
        return f'<p begin="{clock(start)}" ttm:agent="v1" itunes:key="L1">{spans}{other}</p>'

    body = "\n".join(paragraph(*line) for line in timed(lines))
    spaces = {"": "", ":ttm": "#metadata", ":itunes": "/itunes"}
    names = "".join(f' xmlns{name}="http://www.w3.org/ns/ttml{part}"' for name, part in spaces.items())
    return f"<tt{names}><head><metadata/></head><body><div>{body}</div></body></tt>"


FORMATS = {
    "lrc": [bracket_lrc, doubled_lrc, enhanced_lrc, padded_lrc],
    "qrc": [qrc, qrc_xml],
    "krc": [krc],
    "yrc": [yrc],
    "lys": [lys],
    "ttml": [ttml],
}
EVERY = [(suffix, write) for suffix, writers in FORMATS.items() for write in writers]


def song(path: Path) -> Song | str:
    (raw,) = read_file(path)
    return clean_song(raw)


@pytest.mark.parametrize(("suffix", "write"), EVERY, ids=lambda value: getattr(value, "__name__", value))
def test_every_format_gives_the_sung_lines(tmp_path, suffix, write):
    """按扩展名、改了扩展名、贴进 JSON，读出的都是唱的那几行。"""
    lines = [line for line in LINES if write is not padded_lrc or " " not in line]
    content = write(lines)
    for name in (f"歌.{suffix}", "歌.lrc", "歌.txt"):
        path = tmp_path / name
        path.write_text(content, encoding="utf-8")
        assert song(path).text == "\n".join(lines), name
    path = tmp_path / "a.json"
    for lyric in (content, content.split("\n")):
        path.write_text(json.dumps([{"name": "歌", "singer": "人", "lyric": lyric}]), encoding="utf-8")
        assert song(path) == Song("歌", "人", "\n".join(lines))


@pytest.mark.parametrize(("suffix", "write"), EVERY, ids=lambda value: getattr(value, "__name__", value))
def test_a_hundred_and_twenty_songs(suffix, write):
    """120 首各种长短的歌，一字不差。"""
    draw = random.Random(1)
    for seed in range(120):
        lines = make_lines(seed, draw.randint(3, 20))
        if write is not padded_lrc:
            lines = [line[:3] + draw.choice(["", " ", "，"]) + line[3:] for line in lines]
        assert clean_song(RawSong("", "", write(lines), "", timed=suffix != "ttml")).text == "\n".join(lines)


STAMPS = (
    "[00:10,00] [00:10.0000] ［00:10.00］ [00：10.00] [00:10.00-1] [-00:10.00] [00:-10.00] [[00:10.00]] [01:00:10.00] "
    "[00:00:10] [0:10] <00:10.00> [100:10.5] ［00：10．00］ (00:10.00) 【00:10.00】 [00:10;00] [00:10.00][00:10.00]"
).split() + ["[00:10.00 ]", "[ 00:10.00]"]


@pytest.mark.parametrize("stamp", STAMPS)
@pytest.mark.parametrize("name", ["a.lrc", "a.txt"])
def test_stamps_of_any_shape(tmp_path, stamp, name):
    path = tmp_path / name
    path.write_text("\n".join(stamp.replace("10", str(10 + n)) + line for n, line in enumerate(VERSE.split("\n"))))
    assert song(path).text == VERSE


def test_leading_stamps_repeat_and_sort():
    """行首的几个时间是这一行要唱的各个时刻；负的时间不打乱次序。"""
    text = "[00:03.00][00:01.00]副歌\n[00:02.00]主歌\n[-00:02.00]甲\n[-00:01.00]乙"
    assert read_karaoke(text).text.split("\n") == ["甲", "乙", "副歌", "主歌", "副歌"]


def test_tags_of_any_kind(tmp_path):
    """已知、未知的标签都不是歌词；ti、ar 是歌名、歌手。"""
    tags = (
        "[ti:歌][ar:人]\n[kana:1か]\n[tool:滚动姬]\n[lang:zh]\n[#:注释]\n[t_time:(03:45)]\n［by：谁］\n[x_unknown:值]\n"
    )
    path = tmp_path / "文件名.lrc"
    path.write_text(tags + "[00:12.00]风吹过旧街口的第一盏灯", encoding="utf-8")
    assert song(path) == Song("歌", "人", "风吹过旧街口的第一盏灯")


def test_translations_sharing_a_stamp_are_left_out():
    """同一时刻的第二行是别的语言：译文不要；同一种语言的对唱都留下。"""
    sung = ["风吹过旧街口", "灯火落满江岸", "Oh my love"]
    other = ["The wind goes by", "Lights on the shore", "哦我的爱"]
    stamps = [f"[00:1{n}.00]" for n in range(3)]
    beside = "\n".join(f"{stamp}{a}\n{stamp}{b}" for stamp, a, b in zip(stamps, sung, other, strict=True))
    pairs = [[stamp + line for stamp, line in zip(stamps, side, strict=True)] for side in (sung, other)]
    after = "\n".join(pairs[0] + pairs[1])
    assert read_karaoke(beside).text.split("\n") == sung
    assert read_karaoke(after).text.split("\n") == sung
    duet = "\n".join(f"{stamp}{line}\n{stamp}{line}呀" for stamp, line in zip(stamps, sung[:2], strict=False))
    assert len(read_karaoke(duet).text.split("\n")) == 4


def test_background_vocals_in_brackets_stay():
    stamps = "[00:10.00]风吹过旧街口\n[00:11.00]灯火落满江岸\n[00:11.00](Oh oh)\n[00:12.00]谁在等我"
    assert "(Oh oh)" in read_karaoke(stamps).text
    text = ttml(["风"]).replace("</p>", '<span ttm:role="x-bg"><span>(啦</span><span>啦)</span></span></p>')
    assert read_karaoke(text).text.strip() == "风(啦啦)"


def test_unsynced_lines_all_stay():
    """全写成 00:00 的，不是互为译文。"""
    lines = ["风吹过旧街口", "The wind", "灯火落满江岸", "Lights"]
    assert read_karaoke("\n".join(f"[00:00.00]{line}" for line in lines)).text.split("\n") == lines


def test_subtitles(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text(
        "".join(f"{n}\n00:00:1{n},000 --> 00:00:1{n},900\n{line}\n\n" for n, line in enumerate(VERSE.split("\n")))
    )
    assert song(path).text == VERSE


@pytest.mark.parametrize("name", ["a.krc", "a.qrc", "a.lrc", "a.txt"])
@pytest.mark.parametrize(
    "content",
    [
        b"krc18" + bytes(range(256)),
        bytes.fromhex("9825b0ace3028368e8fc6c") + bytes(range(256)),
        b"[offset:0]\n" + bytes(range(128, 256)),
        b"0F2A" * 100,
    ],
    ids=["krc", "qrc", "qrc-inner", "hex"],
)
def test_encrypted_files_are_known_by_their_head(tmp_path, name, content):
    """加了密的一眼认出，不猜编码，也不停下。"""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(NotLyrics, match=ENCRYPTED):
        read_file(path)


def test_broken_ttml_names_the_place(tmp_path):
    path = tmp_path / "坏.ttml"
    path.write_text("<tt xmlns='http://www.w3.org/ns/ttml'>\n<body><p>风</body></tt>", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"坏\.ttml：第 2 行第 \d+ 列不是合法的 XML"):
        read_file(path)
    path.write_text('<!DOCTYPE a [<!ENTITY b "c">]><tt xmlns="http://www.w3.org/ns/ttml"><p>&b;</p></tt>')
    with pytest.raises(CorpusError, match="TTML|DOCTYPE"):
        read_file(path)


@pytest.mark.parametrize(
    "line",
    [
        "[12000]风吹过旧街口的灯",
        "{12:3}风吹过旧街口的灯",
        '"text": "风吹过旧街口的灯",',
        "[Am]风吹过[G7]旧街口的灯",
        "<lyric n=1>风吹过旧街口的灯",
        r"{\k20}风吹{\k30}过旧街口的灯",
    ],
)
def test_what_still_looks_like_markup_is_dropped(line):
    """认不出的写法：有一成以上的行像标记，就不训练，各有原因。"""
    verse = make_lines(3, 8)
    assert clean_song(RawSong("", "", "\n".join([line, line, *verse]), "")) == "仍像标记"
    assert isinstance(clean_song(RawSong("", "", "\n".join([line, *verse, *verse]), "")), Song)


@pytest.mark.parametrize(
    "line", ["（你还爱我吗）", "【请你记得】", "[我愿意]", "1999 那一年", "a < b 的日子", "5:20 我爱你", "(oh 别走)"]
)
def test_brackets_that_are_sung_stay(line):
    assert line in clean_song(RawSong("", "", "\n".join([line, *make_lines(4, 3)]), "")).text.split("\n")


@pytest.mark.parametrize("content", [VERSE, TEXT, "今夜我\n\n\n在风里\n", "[我愿意]\n今夜我", "12:30 的车\n今夜我"])
def test_text_without_stamps_is_untouched(content):
    assert read_karaoke(content).text == content
    assert clean_text(content) == "\n".join(line for line in content.split("\n") if line)


# ---- 别人试出来的 ----

A = ["春风吹过旧城墙", "我在桥头等你归", "灯火映着江水凉", "一壶浊酒敬斜阳"]


def test_entities_in_ttml():
    """先读 XML 再还原实体。"""
    text = ttml(["我"]).replace(">我<", ">Rock &amp; Roll 我 &lt;3 你在春风吹过旧城墙<")
    assert clean_song(RawSong("", "", text, "")).text == "Rock & Roll 我 <3 你在春风吹过旧城墙"
    spans = "\n  ".join(f"<span>{word}</span>" for word in ("Hello", "world", "春"))
    pretty = f"<p>\n  {spans}\n  <ruby>风<rt>feng</rt></ruby>\n</p>"
    body = f'<?xml version="1.0" encoding="gbk"?><tt xmlns="http://www.w3.org/ns/ttml"><body>{pretty}</body></tt>'
    assert read_karaoke(body).text.strip() == "Hello world春风"


@pytest.mark.parametrize("space", ["", " "])
def test_lost_line_breaks(space):
    """换行丢了的 LRC 还是四行。"""
    text = space.join(f"[00:1{n}.00]{line}" for n, line in enumerate(A))
    assert clean_text(text).split("\n") == A


def test_pinyin_above_the_characters_is_left_out():
    above = ["chun feng chui guo jiu cheng qiang", "wo zai qiao tou deng ni gui", "deng huo ying zhe jiang shui liang"]
    pairs = enumerate(zip(above, A, strict=False))
    text = "\n".join(f"[00:1{n}.00]{pinyin}\n[00:1{n}.00]{line}" for n, (pinyin, line) in pairs)
    dropped = []
    assert clean_song(RawSong("", "", text, "", timed=True), dropped).text.split("\n") == A[:3]
    assert [line.reason for line in dropped] == ["译文"] * 3


@pytest.mark.parametrize(
    "text",
    [
        "[00:10.00]春风吹过旧城墙\nOh baby I miss you\n[00:12.00]我在桥头等你归\n[00:14.00]灯火映着江水凉\nCome back",
        "[00:10.00]Oh baby baby\n我在桥头等你归\n[00:14.00]灯火映着江水凉\n春风吹过旧城墙\n[00:16.00]Hey\n一壶浊酒",
        "[00:05]春风吹过旧城墙\n[00:05]Hey hey\n[00:06]我在桥头等你归\n[00:07]灯火映着江水凉",
    ],
)
def test_lines_that_only_follow_are_sung(text):
    """没有自己的时间的行、整秒撞在一起的行，不是译文。"""
    assert len(read_karaoke(text).text.split("\n")) == len(text.split("\n"))


def test_background_tags_and_singer_marks():
    text = "[00:01.00]v1: 春风吹过旧城墙\n[bg:(灯火映着江水凉)]\n[00:03.00]v2: 我在桥头等你归\n[00:05.00][D:]一壶浊酒"
    assert clean_text(text).split("\n") == [A[0], "(灯火映着江水凉)", A[1], "一壶浊酒"]


def test_chinese_tags(tmp_path):
    path = tmp_path / "x.lrc"
    path.write_text("[歌名:春风]\n[歌手:阿木]\n" + "\n".join(f"[00:1{n}.00]{line}" for n, line in enumerate(A)))
    assert song(path) == Song("春风", "阿木", "\n".join(A))
