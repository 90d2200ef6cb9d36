"""数据：读取、清洗、去重、划分、缓存与批次。"""

import json
import os
import random
import re
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest

import tokenizer as tokenizer_module
from corpus import near_copies as near_copies_module
from corpus import tokens
from corpus.cleaning import CLEANING_VERSION, LONGEST_NAME, RawSong, Song, clean_name, clean_song, clean_text
from corpus.files import CorpusError, decode_bytes, find_files, fingerprint_files, is_bundled_sample
from corpus.formats import NotLyrics, read_file
from corpus.near_copies import COMMON_SPAN, content_key, near_copies
from corpus.songs import read_songs, split_songs, unigram_bits_per_character
from corpus.tokens import IGNORED, Ahead, Batches, Corpus, prepare, validation_batches

SAMPLE = Path(__file__).resolve().parent.parent / "ChineseLyrics" / "sample.json"
LETTERS = [chr(0x4E00 + 31 * index) for index in range(300)]
VERSE = "今夜我在风里等你\n山高水远路灯下\n雨落长街故乡的月亮照着河岸\n少年唱歌走过四季花开"


def make_lines(seed: int, lines: int = 10) -> list[str]:
    """一首歌的行：不同的 seed 没有共同的片段。"""
    draw = random.Random(seed)
    return ["".join(draw.choices(LETTERS, k=draw.randint(6, 9))) for _ in range(lines)]


def make_song(seed: int, lines: int = 10) -> dict:
    return {"name": f"歌名{seed}", "singer": f"歌手{seed}", "lyric": make_lines(seed, lines)}


def write_json(path: Path, content) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    return path


def read(path: Path) -> list[RawSong]:
    return list(read_file(path))


def keys_of(*songs: list[str]) -> list[str]:
    return [content_key("\n".join(lines)) for lines in songs]


# ---- 读取：格式 ----


def test_json_with_lines_and_with_text(tmp_path):
    """json 数组；lyric 是行的列表或一段文字。"""
    songs = [make_song(1), {"name": "二", "singer": "人", "lyric": VERSE}]
    first, second = map(clean_song, read(write_json(tmp_path / "a.json", songs)))
    assert first == Song("歌名1", "歌手1", "\n".join(make_lines(1)))
    assert second == Song("二", "人", VERSE)


def test_jsonl(tmp_path):
    """jsonl 每行一首，空行略过，位置写明行号。"""
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(make_song(n)) for n in (1, 2)).replace("\n", "\n\n") + "\n")
    first, second = read(path)
    assert (first.name, second.name) == ("歌名1", "歌名2")
    assert second.where == f"{path} 第 3 行"


def test_txt(tmp_path):
    """txt 一个文件一首，文件名是歌名。"""
    path = tmp_path / "如果爱.txt"
    path.write_bytes(VERSE.replace("\n", "\r\n\r\n").encode())
    assert [clean_song(raw) for raw in read(path)] == [Song("如果爱", "", VERSE)]


def test_lrc(tmp_path):
    """lrc：ti、ar 是歌名与歌手；一行多个时间按时间排开；别的标签与逐字时间去掉。"""
    path = tmp_path / "file.lrc"
    path.write_text(
        "[ti:如果爱]\n[ar:某人]\n[al:专辑名]\n[by:谁]\n[offset:500]\n[00:00.00]作词：某某\n"
        "[00:05.10][00:25.10]这是反复唱的副歌\n[00:01.00]第一行从这里开始\n"
        "[00:15.00]<00:15.00>逐字<00:15.50>时间也要去掉\n[00:12]没有毫秒的时间\n[00:30:50]冒号隔开的毫秒\n",
        encoding="utf-8",
    )
    lines = "第一行从这里开始 这是反复唱的副歌 没有毫秒的时间 逐字时间也要去掉 这是反复唱的副歌 冒号隔开的毫秒"
    assert [clean_song(raw) for raw in read(path)] == [Song("如果爱", "某人", lines.replace(" ", "\n"))]


def test_lrc_without_tags(tmp_path):
    """没有 ti 时用文件名。"""
    path = tmp_path / "那一年.LRC"
    path.write_text("[00:01.00]今夜我在风里等你\n[00:02.00]山高水远路灯下", encoding="utf-8")
    assert clean_song(read(path)[0]) == Song("那一年", "", "今夜我在风里等你\n山高水远路灯下")


def test_files_are_found_in_order(tmp_path):
    """子文件夹也找，大小写后缀都认，别的文件不管，次序固定。"""
    for name in ("b/c.json", "a.JSONL", "z.txt", "b/a.lrc", "README.md", "c.docx"):
        write_json(tmp_path / name, [])
    found = [path.relative_to(tmp_path).as_posix() for path in find_files(tmp_path).files]
    assert found == sorted(found)
    assert set(found) == {"a.JSONL", "b/a.lrc", "b/c.json", "z.txt"}


# ---- 读取：编码 ----


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "gb18030", "gbk"])
@pytest.mark.parametrize("suffix", [".json", ".txt"])
def test_readable_encodings(tmp_path, encoding, suffix):
    """UTF-8 带不带 BOM、GB18030 都读得一字不差。"""
    path = tmp_path / f"a{suffix}"
    content = json.dumps([{"name": "a", "lyric": VERSE}], ensure_ascii=False) if suffix == ".json" else VERSE
    path.write_bytes(content.encode(encoding))
    (song,) = map(clean_song, read(path))
    assert song.text == VERSE


def test_traditional_gb18030():
    """GB18030 的繁体字、罕见字与 emoji 也认得。"""
    text = "風裡雨裡，我在這裡等你；燈火闌珊處，誰還記得誰。\n𠮷野家的夜晚 🎵\n" * 2
    assert decode_bytes(text.encode("gb18030"), Path("a")) == text


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"], ids=["plain", "bom"])
def test_damaged_utf8_names_the_position(bom):
    """UTF-8 里坏了一个字节：说出它在文件里的位置，而不是当成 GB18030 读出乱码。"""
    content = bytearray(bom + VERSE.encode() * 3)
    place = content.index("月".encode())
    content[place] = 0xFF
    with pytest.raises(CorpusError, match=f"songs.txt：第 {place} 字节"):
        decode_bytes(bytes(content), Path("songs.txt"))


def test_truncated_utf8():
    """文件在半个字处断了。"""
    content = VERSE.encode()[:-1]
    with pytest.raises(CorpusError, match="字节"):
        decode_bytes(content, Path("a.txt"))


TRADITIONAL = {
    "a": "今夜我在風裡等你\n山高水遠路燈下\n雨落長街故鄉的月亮照著河岸\n少年唱歌走過四季花開",
    "b": "如果愛還在心中\n請你不要再說話\n讓我靜靜地看著你\n直到天亮以後才離開",
    "c": "我們的故事還沒有結束\n你卻已經轉身離去\n留下我一個人面對孤獨\n眼淚像雨一樣落下",
}
JAPANESE = {
    "a": "さくらの花が咲くころに\n君と歩いた道を思い出す\n風の中で歌っていた\nあの日のメロディー",
    "b": "夜空に輝く星のように\nいつまでも君を見つめている\n涙が止まらない夜も\n心はひとつだと信じて",
}


@pytest.mark.parametrize(
    ("text", "encoding"),
    [(text, "big5") for text in TRADITIONAL.values()]
    + [(text, "shift_jis") for text in JAPANESE.values()]
    + [(VERSE, code) for code in ("utf-16", "utf-16-le", "utf-16-be", "utf-32")],
    ids=lambda value: value if value.isascii() else value[:4],
)
def test_other_encodings_are_an_error(tmp_path, text, encoding):
    """别的编码不能悄悄读成乱码：说出文件、位置，和转换成什么。"""
    path = tmp_path / "songs.txt"
    path.write_bytes(text.encode(encoding))
    with pytest.raises(CorpusError, match=r"songs\.txt：第 \d+ 字节.*UTF-8"):
        read(path)


# ---- 读取：JSON 有误 ----


def test_malformed_json_names_line_and_column(tmp_path):
    """JSON 写错时说出文件、行与列。"""
    path = tmp_path / "a.json"
    path.write_text('[\n  {"name": "a",\n   "lyric" ["x"]}\n]', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.json：第 3 行第 12 列") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_malformed_jsonl_names_line_and_column(tmp_path):
    """jsonl 的行号是文件里的行号。"""
    path = tmp_path / "a.jsonl"
    path.write_text('{"name": "a", "lyric": []}\n\n{"name": oops}\n', encoding="utf-8")
    with pytest.raises(CorpusError, match=r"a\.jsonl：第 3 行第 10 列"):
        read(path)


@pytest.mark.parametrize(
    "content", ["歌", 5, None, [], {}, {"a": ["a", "ia"]}, [{"name": "作者", "desc": "生平"}], [[1, 2]]]
)
def test_json_without_songs_is_left_out(tmp_path, content):
    """没有歌的 JSON 略过，不是错误。"""
    with pytest.raises(NotLyrics, match="没有歌的 JSON"):
        read(write_json(tmp_path / "a.json", content))


def test_absurd_json(tmp_path):
    """嵌套过深的 JSON 是一句错误，不是回溯。"""
    path = tmp_path / "a.json"
    path.write_text("[" * 200_000 + '"lyric"', encoding="utf-8")
    with pytest.raises(CorpusError, match="a.json"):
        read(path)


# ---- 清洗 ----

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


# ---- 去重 ----


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


# ---- 划分 ----


def test_adding_songs_moves_none():
    """加歌之后，旧歌仍在原来那一边；次序也无关。"""
    old = keys_of(*(make_lines(seed, 3) for seed in range(200)))
    new = keys_of(*(make_lines(seed, 3) for seed in range(200, 500)))

    def val_keys(keys):
        return {keys[index] for index in split_songs(keys, 0.1)[1]}

    before, after = val_keys(old), val_keys(new[:150] + old[::-1] + new[150:])
    assert before == after & set(old)
    assert after - before


def test_split_covers_every_song_once():
    """每首恰在一边，验证集约为所要的比例。"""
    keys = keys_of(*(make_lines(seed, 3) for seed in range(1000)))
    train, val, digests = split_songs(keys, 0.1)
    assert sorted(train + val) == list(range(1000))
    assert 60 <= len(val) <= 140
    assert len(set(digests)) == 1000


@pytest.mark.parametrize("fraction", [1e-9, 0.5])
def test_two_songs_fill_both_sides(fraction):
    """两首歌也要一边一首。"""
    for seed in range(10):
        train, val, _ = split_songs(keys_of(make_lines(seed), make_lines(seed + 50)), fraction)
        assert len(train) == len(val) == 1


def test_unigram_bits_per_character():
    """手算：训练 aab，验证 ab；计数 a2 b1 歌尾1 未见1，加一后 a3 b2 歌尾2 未见1，共 8。"""
    expected = -(np.log2(3 / 8) + np.log2(2 / 8) + np.log2(2 / 8)) / 2
    assert unigram_bits_per_character(["aab"], ["ab"]) == pytest.approx(expected)
    unseen = -(np.log2(1 / 8) + np.log2(2 / 8))
    assert unigram_bits_per_character(["aab"], ["c"]) == pytest.approx(unseen)


# ---- prepare：从文件夹到缓存 ----


class Workshop:
    """临时文件夹里的语料、缓存与分词模型。"""

    def __init__(self, folder: Path) -> None:
        self.lyrics, self.cache, self.model = folder / "lyrics", folder / "cache", folder / "bpe.model"
        self.said: list[str] = []

    def write(self, name: str, songs: list) -> Path:
        return write_json(self.lyrics / name, songs)

    def prepare(self, vocab_size: int = 2000, val_fraction: float = 0.2, **extra) -> Corpus:
        self.said = []
        return prepare(self.lyrics, self.cache, self.model, vocab_size, val_fraction, say=self.said.append, **extra)

    @property
    def rebuilt(self) -> bool:
        return any("编码" in message for message in self.said)

    @property
    def trained(self) -> bool:
        return any("训练分词器" in message for message in self.said)


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


@pytest.fixture
def forty(workshop):
    """40 首歌，已经准备过一次。"""
    workshop.write("songs.json", [make_song(seed) for seed in range(40)])
    workshop.corpus = workshop.prepare()
    return workshop


def split_stream(corpus: Corpus, stream: np.ndarray) -> list[dict]:
    """词元流 → 每首歌 {title, singer, lyric}；布局不对时失败。"""
    book = corpus.tokenizer
    ends = np.flatnonzero(stream == book.eos_id) + 1
    assert ends[-1] == len(stream)
    songs = []
    for ids in np.split(stream, ends[:-1]):
        ids = ids.tolist()
        assert (ids[0], ids[-1]) == (book.bos_id, book.eos_id)
        song, current = {}, None
        for index in ids[1:-1]:
            if index in (book.title_id, book.singer_id, book.lyric_id):
                current = {book.title_id: "title", book.singer_id: "singer", book.lyric_id: "lyric"}[index]
                assert current not in song
                song[current] = []
            else:
                song[current].append(index)
        assert list(song) in (["title", "singer", "lyric"], ["title", "lyric"], ["singer", "lyric"], ["lyric"])
        songs.append({part: book.decode(inside) for part, inside in song.items()})
    return songs


def lyrics_of(corpus: Corpus, stream: np.ndarray) -> set[str]:
    return {song["lyric"] for song in split_stream(corpus, stream)}


def test_stream_holds_every_song(forty):
    """两个词元流合起来正是全部歌，一行不少，布局是 `<s> [<title>] [<singer>] <lyric> … </s>`。"""
    corpus = forty.corpus
    assert corpus.train.dtype == corpus.val.dtype == np.uint16
    train, val = lyrics_of(corpus, corpus.train), lyrics_of(corpus, corpus.val)
    assert train | val == {"\n".join(make_lines(seed)) for seed in range(40)}
    assert train
    assert val
    assert not train & val


def test_half_of_the_songs_carry_names(workshop):
    """约一半的歌带歌名与歌手，是哪一半由内容决定，加歌不变；名字写对了歌。"""
    workshop.write("b.json", [make_song(seed, 4) for seed in range(100)])

    def named(corpus):
        return {
            song["lyric"]: (song.get("title"), song.get("singer"))
            for stream in (corpus.train, corpus.val)
            for song in split_stream(corpus, stream)
        }

    before = named(workshop.prepare())
    written = {"\n".join(make_lines(seed, 4)): (f"歌名{seed}", f"歌手{seed}") for seed in range(100)}
    assert all(names in ((None, None), written[lyric]) for lyric, names in before.items())
    assert 30 <= sum(names != (None, None) for names in before.values()) <= 70
    workshop.write("a.json", [make_song(seed, 4) for seed in range(100, 150)])
    after = named(workshop.prepare())
    assert {lyric: after[lyric] for lyric in before} == before


def test_missing_singer_leaves_no_mark(workshop):
    """没有歌手的歌不写空的 <singer>。"""
    workshop.write("a.json", [{**make_song(seed), "singer": ""} for seed in range(30)])
    corpus = workshop.prepare()
    songs = split_stream(corpus, corpus.train) + split_stream(corpus, corpus.val)
    assert {tuple(song) for song in songs} == {("title", "lyric"), ("lyric",)}


def test_report(workshop):
    """报告：读了多少、因何舍弃、重复多少、字数、词元数、两边各多少。"""
    songs = [make_song(seed) for seed in range(20)]
    live = {**make_song(3), "lyric": make_lines(3) + make_lines(3)[5:] + ["谢谢大家"]}
    workshop.write("a.json", [*songs, make_song(1), live, {"name": "缺"}, {"lyric": "Hello"}])
    corpus = workshop.prepare()
    report = corpus.report
    assert report["songs_read"] == 24
    assert report["dropped"] == {"缺少 lyric": 1, "汉字不足 10 个": 1}
    assert (report["identical"], report["near_copies"]) == (1, 1)
    assert report["songs"] == report["train_songs"] + report["val_songs"] == 20
    assert report["characters"] == sum(len("\n".join(make_lines(seed))) for seed in range(20))
    assert report["tokens"] == len(corpus.train) + len(corpus.val)
    assert (report["train_tokens"], report["val_tokens"]) == (len(corpus.train), len(corpus.val))
    assert report["tokens_per_character"] == pytest.approx(report["tokens"] / report["characters"])
    assert report["vocab_size"] == corpus.tokenizer.vocab_size < 2000
    assert workshop.prepare().report == report  # 读缓存时也是同一份


def test_first_in_reading_order_stays(workshop):
    """重复的歌留下先读到的：文件按路径，文件内按次序。"""
    others = [make_song(seed) for seed in range(10, 20)]
    workshop.write("b.json", [*others, {**make_song(1), "lyric": [*make_lines(1), "后来加的一行"]}])
    workshop.write("a.json", [make_song(1)])
    corpus = workshop.prepare()
    lyrics = lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val)
    assert "\n".join(make_lines(1)) in lyrics
    assert len(lyrics) == 11


def test_no_near_copy_on_both_sides(workshop):
    """每首歌都有一个近似的版本时，验证集里没有训练过的歌。"""
    songs = [make_song(seed, 12) for seed in range(40)]
    covers = [{**song, "lyric": [*song["lyric"][:9], *make_lines(500 + n, 3)]} for n, song in enumerate(songs)]
    workshop.write("a.json", songs)
    workshop.write("b.json", covers)
    corpus = workshop.prepare(val_fraction=0.5)
    train, val = sorted(lyrics_of(corpus, corpus.train)), sorted(lyrics_of(corpus, corpus.val))
    assert len(train) + len(val) == 40
    assert len(val) >= 10
    assert near_copies([content_key(text) for text in train + val]) == {}


def test_added_songs_move_none_in_the_streams(forty):
    """加一个文件之后，旧歌在词元流里仍在原来那一边。"""
    before = lyrics_of(forty.corpus, forty.corpus.val)
    old = before | lyrics_of(forty.corpus, forty.corpus.train)
    forty.write("added.json", [make_song(seed) for seed in range(100, 140)])
    corpus = forty.prepare()
    assert lyrics_of(corpus, corpus.val) & old == before


def test_tokenizer_learns_from_training_songs_only(workshop):
    """验证歌曲的字不进分词器的训练语料。"""
    workshop.write("a.json", [make_song(seed) for seed in range(40)])
    seen = []
    original = tokenizer_module.train

    def spy(lines, vocab_size):
        seen.extend(lines)
        return original(lines, vocab_size)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizer_module, "train", spy)
        corpus = workshop.prepare()
    held_out = {line for text in lyrics_of(corpus, corpus.val) for line in text.split("\n")}
    assert held_out
    assert not held_out & set(seen)


# ---- 缓存 ----


def test_second_start_reads_the_cache(forty):
    """什么都没变时直接读缓存，一个文件也不改写。"""
    files = [*forty.cache.iterdir(), forty.model]
    for path in files:
        os.utime(path, (1, 1))
    again = forty.prepare()
    assert not forty.rebuilt
    assert not forty.trained
    assert {path.stat().st_mtime for path in files} == {1}
    assert set(forty.cache.iterdir()) == set(files[:-1])
    assert np.array_equal(again.train, forty.corpus.train)
    assert np.array_equal(again.val, forty.corpus.val)
    assert again.fingerprint == forty.corpus.fingerprint


def test_changed_song_rebuilds(forty):
    """改了一首歌的一个字（文件大小不变）也会重建。"""
    path = forty.lyrics / "songs.json"
    size, line = path.stat().st_size, make_lines(7)[0]
    path.write_text(path.read_text(encoding="utf-8").replace(line, "風" + line[1:]), encoding="utf-8")
    assert path.stat().st_size == size
    corpus = forty.prepare()
    assert forty.rebuilt
    assert corpus.fingerprint != forty.corpus.fingerprint
    lyrics = lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val)
    assert any("風" in text for text in lyrics)


def test_cleaning_version_rebuilds(forty, monkeypatch):
    """清洗规则的版本变了，缓存作废；文件的指纹不变。"""
    monkeypatch.setattr(tokens, "CLEANING_VERSION", CLEANING_VERSION + 1)
    assert forty.prepare().fingerprint == forty.corpus.fingerprint
    assert forty.rebuilt


def test_tokenizer_settings_rebuild(forty, monkeypatch):
    """分词器的训练方法变了，重训分词器。"""
    monkeypatch.setattr(tokenizer_module, "SETTINGS_VERSION", tokenizer_module.SETTINGS_VERSION + 1)
    forty.prepare()
    assert forty.trained


def test_other_vocabulary_rebuilds(workshop):
    """换了词表大小，重训分词器并重新编码。"""
    workshop.write("songs.json", [make_song(seed, 120) for seed in range(40)])
    larger = workshop.prepare(vocab_size=620)
    smaller = workshop.prepare(vocab_size=600)
    assert workshop.trained
    assert workshop.rebuilt
    assert (larger.tokenizer.vocab_size, smaller.tokenizer.vocab_size) == (620, 600)
    assert smaller.train.max() < 600


def test_other_split_rebuilds(forty):
    """换了验证比例，重新划分。"""
    corpus = forty.prepare(val_fraction=0.5)
    assert forty.rebuilt
    assert corpus.report["val_songs"] > forty.corpus.report["val_songs"]


def test_other_tokenizer_file_rebuilds(forty):
    """分词模型文件被换掉时，不拿旧缓存去配。"""
    forty.model.write_bytes(tokenizer_module.train(make_lines(77, 200), 600).model_bytes)
    corpus = forty.prepare()
    assert forty.trained
    assert np.array_equal(corpus.train, forty.corpus.train)


def damage_truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def damage_header_only(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:64])


def damage_empty(path: Path) -> None:
    path.write_bytes(b"")


def damage_longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0\0")


def damage_flip_token(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-9] ^= 0x01
    path.write_bytes(content)


def damage_flip_header(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[0] ^= 0x01
    path.write_bytes(content)


def damage_remove(path: Path) -> None:
    path.unlink()


@pytest.mark.parametrize(
    "damage",
    [
        damage_truncate,
        damage_header_only,
        damage_empty,
        damage_longer,
        damage_flip_token,
        damage_flip_header,
        damage_remove,
    ],
    ids=lambda damage: damage.__name__.removeprefix("damage_"),
)
@pytest.mark.parametrize("name", ["train.bin", "val.bin"])
def test_damaged_cache_is_rebuilt(forty, damage, name):
    """缓存被截断、改了一位或删掉：发现并重建成同样的词元，分词器不必重训。"""
    train, val = np.array(forty.corpus.train), np.array(forty.corpus.val)
    forty.corpus = None  # 放开内存映射
    damage(forty.cache / name)
    again = forty.prepare()
    assert forty.rebuilt
    assert not forty.trained
    assert np.array_equal(again.train, train)
    assert np.array_equal(again.val, val)
    forty.prepare()
    assert not forty.rebuilt


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"{}", b"\xff\xfe"])
@pytest.mark.parametrize("name", ["report.json", "tokenizer.json"])
def test_damaged_notes_are_rebuilt(forty, name, content):
    """缓存旁的记录坏了，也是重建，不是回溯。"""
    (forty.cache / name).write_bytes(content)
    assert np.array_equal(forty.prepare().train, forty.corpus.train)


def test_given_tokenizer_is_used_and_the_file_left_alone(forty):
    """用检查点的分词器时不训练，也不碰分词模型文件；它有自己的缓存指纹。"""
    given = tokenizer_module.train(make_lines(77, 200), 600)
    os.utime(forty.model, (1, 1))
    content = forty.model.read_bytes()
    corpus = forty.prepare(tokenizer=given)
    assert forty.rebuilt
    assert not forty.trained
    assert corpus.tokenizer is given
    assert forty.model.read_bytes() == content
    assert forty.model.stat().st_mtime == 1
    expected = {"\n".join(make_lines(seed)) for seed in range(40)}
    assert lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val) == expected
    forty.prepare(tokenizer=given)
    assert not forty.rebuilt
    assert corpus.fingerprint == forty.corpus.fingerprint  # 语料没变，检查点认得出


def test_given_tokenizer_creates_no_file(workshop):
    """没有分词模型文件时，也不因检查点的分词器而生出一个。"""
    workshop.write("a.json", [make_song(seed) for seed in range(10)])
    workshop.prepare(tokenizer=tokenizer_module.train(make_lines(77, 200), 600))
    assert not workshop.model.exists()


def test_corpus_fingerprint_matches_prepare(forty):
    """检查点里的语料指纹，不准备语料也算得出。"""
    assert fingerprint_files(forty.lyrics, find_files(forty.lyrics).files) == forty.corpus.fingerprint


# ---- prepare：不能用的语料 ----


def refused(workshop: Workshop) -> str:
    with pytest.raises(CorpusError) as caught:
        workshop.prepare()
    assert len(str(caught.value).splitlines()) <= 2
    assert str(workshop.lyrics) in str(caught.value)
    return str(caught.value)


def test_missing_folder(workshop):
    """文件夹不存在。"""
    assert "不存在" in refused(workshop)


def test_folder_is_a_file(workshop):
    """把文件当成了文件夹。"""
    workshop.lyrics.write_text("今夜我")
    assert "不存在" in refused(workshop)


def test_empty_folder(workshop):
    """文件夹里没有歌词文件，说出认哪些。"""
    (workshop.lyrics / "sub.json").mkdir(parents=True)
    (workshop.lyrics / "README.md").write_text("说明")
    text = refused(workshop)
    assert "是空的" in text
    assert "*.jsonl" in text


@pytest.mark.parametrize(
    ("songs", "reason"),
    [
        ([], "没有歌的 JSON 1 个文件"),
        ([{"name": "a"}], "没有歌的 JSON 1 个文件"),
        ([{"lyric": None}], "缺少 lyric 1 首"),
        ([{"lyric": "hello"}, {"lyric": "hi"}, {"lyric": []}], "汉字不足 10 个 2 首"),
    ],
)
def test_no_song_left(workshop, songs, reason):
    """清洗后一首不剩，说出为什么。"""
    workshop.write("a.json", songs)
    text = refused(workshop)
    assert "没有剩下一首歌" in text
    assert reason in text


def test_one_song_is_not_enough(workshop):
    """只剩一首，没法一边训练一边验证。"""
    workshop.write("a.json", [make_song(1), make_song(1)])
    assert "只剩 1 首" in refused(workshop)


@pytest.mark.parametrize("content", [b'[{"name": ', VERSE.encode("utf-16"), b""])
def test_bad_file_is_named(workshop, content):
    """坏文件的错误从 prepare 原样传出，写明文件，不留下缓存。"""
    workshop.write("good.json", [make_song(seed) for seed in range(5)])
    (workshop.lyrics / "坏.json").write_bytes(content)
    assert "坏.json" in refused(workshop)
    assert not workshop.cache.exists()


# ---- 自带样例 ----


def test_sample_is_used_alone_and_said(workshop):
    """没有别的歌词时用自带样例，并且说出来。"""
    workshop.lyrics.mkdir()
    shutil.copy(SAMPLE, workshop.lyrics / "sample.json")
    assert workshop.prepare(vocab_size=4000).report["songs"] > 200
    assert any("sample.json" in message for message in workshop.said)


def test_sample_is_ignored_beside_own_songs(workshop):
    """有了自己的歌，样例就不混进来。"""
    workshop.lyrics.mkdir()
    shutil.copy(SAMPLE, workshop.lyrics / "sample.json")
    workshop.write("mine.jsonl", []).write_text("\n".join(json.dumps(make_song(seed)) for seed in range(10, 13)))
    corpus = workshop.prepare()
    lyrics = lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val)
    assert lyrics == {"\n".join(make_lines(seed)) for seed in range(10, 13)}
    assert not any("sample.json" in message for message in workshop.said)


def test_own_sample_json_is_read(workshop):
    """自己的 sample.json（内容不是自带样例）照常读，也与别的文件一起读。"""
    workshop.write("sample.json", [make_song(seed) for seed in range(5)])
    assert workshop.prepare().report["songs"] == 5
    assert not any("自带样例" in message for message in workshop.said)
    workshop.write("mine.json", [make_song(seed) for seed in range(5, 9)])
    assert workshop.prepare().report["songs"] == 9


def test_bundled_sample_is_known_by_content(tmp_path):
    """仓库里的样例认得出，Windows 的换行也一样；改过一个字就是自己的。"""
    assert is_bundled_sample(SAMPLE)
    path = tmp_path / "sample.json"
    path.write_bytes(SAMPLE.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    assert is_bundled_sample(path)
    path.write_bytes(SAMPLE.read_bytes() + b" ")
    assert not is_bundled_sample(path)


# ---- 训练批次 ----

SIZES = [(103, 10, 4), (50, 10, 5), (29, 8, 8), (11, 10, 3), (5, 10, 2)]  # (词元数, 窗口, 批)


@pytest.mark.parametrize(("count", "seq_len", "batch_size"), SIZES)
def test_targets_are_shifted_by_one(count, seq_len, batch_size):
    """目标是输入右移一位，首尾相接处也是。"""
    batches = Batches(np.arange(count, dtype=np.uint16), seq_len, batch_size, seed=1)
    for step in range(10):
        x, y = batches.at(step)
        assert x.shape == y.shape == (batch_size, seq_len)
        assert x.dtype == y.dtype == np.int64
        assert np.array_equal(y, (x + 1) % count)


@pytest.mark.parametrize(("count", "seq_len", "batch_size"), SIZES)
def test_every_epoch_visits_each_window_once(count, seq_len, batch_size):
    """每轮每个窗口一次，窗口不重叠；语料比一批小时批次跨轮。"""
    batches = Batches(np.arange(count, dtype=np.uint16), seq_len, batch_size, seed=3)
    per_epoch = max(1, count // seq_len)
    assert batches.windows_per_epoch == per_epoch
    steps = -(-per_epoch * 4 // batch_size)
    windows = np.concatenate([batches.at(step)[0] for step in range(steps)])[: per_epoch * 4]
    for epoch in windows.reshape(4, per_epoch, seq_len):
        assert len(set(epoch[:, 0].tolist())) == per_epoch
        if count >= seq_len:
            assert len(set(epoch.ravel().tolist())) == per_epoch * seq_len


def test_batches_depend_on_seed_and_step_only():
    """第 n 步的批次与先前取过什么无关；换种子、换轮则次序不同。"""
    tokens = np.arange(1000, dtype=np.uint16)
    walked = Batches(tokens, 10, 16, seed=1)
    in_order = [walked.at(step)[0] for step in range(20)]
    for step in (19, 3, 11):
        assert np.array_equal(Batches(tokens, 10, 16, seed=1).at(step)[0], in_order[step])
    assert not np.array_equal(Batches(tokens, 10, 16, seed=2).at(0)[0], in_order[0])
    epochs = [Batches(tokens, 10, 100, seed=1).at(step)[0] for step in (0, 1)]
    assert not np.array_equal(*epochs)


def test_batch_size_only_regroups():
    """批大小只改变分组，不改变窗口的次序。"""
    tokens = np.arange(1000, dtype=np.uint16)
    large = Batches(tokens, 10, 12, seed=1).at(0)[0]
    small = [Batches(tokens, 10, 4, seed=1).at(step)[0] for step in range(3)]
    assert np.array_equal(np.concatenate(small), large)


# ---- 验证批次 ----


@pytest.mark.parametrize("count", [2, 5, 10, 11, 12, 20, 21, 97, 101])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_validation_predicts_each_token_once(count, batch_size):
    """每个词元（开头的除外）恰好预测一次，余下的位置补 -1。"""
    tokens = np.arange(count, dtype=np.uint16)
    batches = list(validation_batches(tokens, 10, batch_size, most=10_000))
    targets = np.concatenate([y.ravel() for _, y in batches])
    assert targets[targets != IGNORED].tolist() == list(range(1, count))
    assert IGNORED == -1
    for x, y in batches:
        assert x.shape == y.shape
        assert x.shape[1] == 10
        assert len(x) <= batch_size
        assert x.dtype == y.dtype == np.int64
        assert ((y == x + 1) | (y == -1)).all()
        assert x.max() < count


def test_validation_of_part_is_the_same_every_time():
    """超过上限时取均匀分布的一部分，每次相同，不含重复，与批大小无关。"""
    tokens = np.arange(2001, dtype=np.uint16)

    def starts(batch_size):
        return [x[0] for batch, _ in validation_batches(tokens, 10, batch_size, most=8) for x in batch]

    assert starts(4) == starts(4) == starts(3)
    assert len(set(starts(4))) == len(starts(4)) == 8
    assert starts(4)[0] == 0
    assert starts(4)[-1] == 1990


def test_cleaning_time_is_linear():
    """很长的怪行不会让正则表达式卡住。"""
    for awkward in (
        "作词" * 20_000,
        "[" * 20_000,
        " " * 20_000 + "x",
        "(间奏" * 10_000,
        "x2 " * 10_000,
        "<b " * 10_000,
    ):
        assert isinstance(clean_text(awkward), str)
        assert not re.search("\n\n", clean_text(awkward))


def test_batches_are_made_ahead_in_another_thread():
    """下一步的在另一个线程里先备好，跳到别的步也对，错误在取的时候抛出，之后照常。"""
    made = []

    def make(step):
        made.append((step, threading.current_thread() is threading.main_thread()))
        if step == 7:
            raise ValueError("第七步")
        return step * 10

    ahead = Ahead(make)
    assert [ahead.at(step) for step in (0, 1, 2, 2, 6)] == [0, 10, 20, 20, 60]
    with pytest.raises(ValueError, match="第七步"):
        ahead.at(7)
    assert ahead.at(8) == 80
    ahead._worker.shutdown()
    assert made == [(step, False) for step in (0, 1, 2, 3, 2, 3, 6, 7, 8, 9)]
