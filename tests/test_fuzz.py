"""坏文件：成千上万个胡乱改过的歌词文件与缓存，读出来的都是合法文字，读不了的都说得清楚。"""

import contextlib
import errno
import functools
import hashlib
import json
import os
import random
import signal
import unicodedata
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_data import VERSE, Workshop, lyrics_of, make_lines, make_song

from corpus import tokens
from corpus.cleaning import FEWEST_HAN, LONGEST_NAME, RawSong, Song, clean_name, clean_song, clean_text
from corpus.files import CorpusError, find_files
from corpus.formats import read_file
from corpus.karaoke import MOST_REPEATS, read_karaoke
from corpus.near_copies import content_key, near_copies
from corpus.songs import read_songs
from corpus.tokens import Corpus, _cache_fingerprint, _load_cache, corpus_identity, read_stream
from tokenizer import TokenizerError

SUFFIXES = (".json", ".jsonl", ".txt", ".lrc")
FILES_PER_SUFFIX = 5_500
REASONS = {"缺少 lyric", "格式不对", "歌词为空", "清洗后为空", "仍像标记", "汉字不足 10 个"}
DIRECTION_MARKS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")

repeatable = functools.partial(
    settings,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def quiet(message: str) -> None:
    message.encode("utf-8")


@contextlib.contextmanager
def limit(seconds: float):
    """超时就失败，而不是一直等下去。"""

    def give_up(*_):
        raise AssertionError(f"{seconds} 秒还没做完")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    previous = signal.signal(signal.SIGALRM, give_up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def assert_valid(text: str) -> None:
    """合法的 Unicode；除换行外没有控制、代理、私用、方向字符与非字符。"""
    text.encode("utf-8")
    for character in set(text) - {"\n"}:
        assert unicodedata.category(character) not in ("Cc", "Cs", "Co"), ascii(character)
        assert character not in DIRECTION_MARKS, ascii(character)
        assert ord(character) & 0xFFFE != 0xFFFE, ascii(character)
        assert not 0xFDD0 <= ord(character) <= 0xFDEF, ascii(character)


def assert_clean_text(text: str) -> None:
    assert_valid(text)
    for line in text.split("\n") if text else []:
        assert line == " ".join(line.split())
        assert line


def assert_clean_song(song: Song) -> None:
    assert_clean_text(song.text)
    assert sum("\u3400" <= character <= "\U000323af" for character in song.text) >= FEWEST_HAN
    for name in (song.name, song.singer):
        assert_valid(name)
        assert name == " ".join(name.split())
        assert len(name) <= LONGEST_NAME


def read_one(path: Path) -> tuple[list[Song], Counter]:
    """一个文件的歌与舍弃数；不能读时是 ([], {"error": 1})。途中处处查对。"""
    report = {}
    try:
        songs, _ = read_songs([path], report, quiet)
    except CorpusError as error:
        message = str(error)
        assert path.name in message
        assert len(message.splitlines()) == 1
        assert any("\u4e00" <= character <= "\u9fff" for character in message)
        message.encode("utf-8")
        return [], Counter(error=1)
    assert report["songs_read"] == len(songs) + sum(report["dropped"].values())
    assert set(report["dropped"]) == set(report["dropped_examples"]) <= REASONS
    for song in songs:
        assert_clean_song(song)
    assert set(report["unread"]) == set(report["unread_examples"])
    return songs, Counter(report["dropped"]) + Counter(unread=sum(report["unread"].values()))


# ---- 胡乱改过的文件 ----

WORDS = (
    list("今夜我在风里等你山高水远路灯下雨落长街故乡的月亮照着河岸 \n\n\n")
    + ["作词：某人", "[Chorus]", "【副歌】", "男：", "(x2)", "×3", "[00:01.00]", "[99:99:999]", "[٣:٣]", "<00:01>"]
    + ["[ti:歌]", "[ar:", "<br/>", "<b", "</p>", "&nbsp;"]
    + ["&#25105;", "&#0;", "&#xD800;", "&#x110000;", "&#" + "9" * 5000 + ";", "&amp;lt;", "&", "<", "[", "("]
    + ["未经许可"]
    + ["\0", "\x07", "\x1b[2J", "\x7f", "\x85", "\r\n", "\r", "\v", "\f", "\t", "\u2028", "\u3000", "\u00a0"]
    + ["\u200b", "\u200e", "\u200f", "\u202e", "\u2066", "\u061c", "\ufeff", "\ufffd", "\ufffe", "\ufdd0", "\U0001ffff"]
    + ["\ue000", "\U0010ffff", "\U000e0041", "\U0002fff0", "🎵", "𠮷", "ﷺ", "e\u0301\u0301", "İ", "ß"]
    + ["\u2581", "<lyric>"]
)
RAW = (
    [b"\0", b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\xc0\x80", b"\xef\xbb\xbf", b"\xff\xfe"]
    + [b"\xfe\xff"]
    + [VERSE[:9].encode(code) for code in ("utf-8", "gb18030", "utf-16-le", "utf-16", "utf-32")]
    + ["さくら".encode("shift_jis"), "風裡".encode("big5"), b"\x84\x31\xa4\x37", b"\x81\x30\x81\x30"]
    + [b"\\ud800", b"\\udfff", b"\\u0000", b"\\ud83d\\ude00", b"\\", b'"', b"'", b"{", b"}", b"[", b"]", b":"]
    + [b",", b"\n"]
    + [b"NaN", b"-Infinity", b"1e999", b"null", b"true", b"9" * 5000, b'"lyric": 5,', b'"name": {},', b"[" * 3000]
    + [b'{"a":' * 3000, b"[00:01.00]" * 200, b" " * 500, b"\r", b"\x1a", b"//", b"/*", b"<" * 300, b"&#x" + b"f" * 600]
)


def hostile_value(draw: random.Random, depth: int = 0):
    """JSON 的任意值，多半是像歌词的文字。"""
    kind = draw.random()
    if kind < 0.6:
        text = "".join(draw.choices(WORDS, k=draw.randint(0, 40)))
        return text + draw.choice(["\ud800", "\udc00x", VERSE, VERSE, ""])
    if kind < 0.85 and depth < 3:
        return [hostile_value(draw, depth + 1) for _ in range(draw.randint(0, 5))]
    if kind < 0.9 and depth < 3:
        return {draw.choice(["name", "lyric", "\ud800", ""]): hostile_value(draw, depth + 1)}
    return draw.choice([None, True, 0, -1.5, 10**400, float("nan"), float("inf"), "", [], {}])


def hostile_song(draw: random.Random):
    if draw.random() < 0.1:
        return hostile_value(draw)
    song = {key: hostile_value(draw) for key in ("name", "singer", "lyric", "extra") if draw.random() < 0.9}
    if isinstance(song.get("lyric"), list) and draw.random() < 0.7:
        song["lyric"] = [str(line) for line in song["lyric"]]
    return song


def well_formed(draw: random.Random, suffix: str) -> bytes:
    """格式正确、内容古怪的文件。"""
    if suffix in (".json", ".jsonl"):
        ascii_only = draw.random() < 0.5
        songs = [json.dumps(hostile_song(draw), ensure_ascii=ascii_only) for _ in range(draw.randint(0, 3))]
        text = "\n".join(songs) if suffix == ".jsonl" else f"[{','.join(songs)}]"
    else:
        text = "".join(draw.choices(WORDS, k=draw.randint(0, 60))) + draw.choice([VERSE, ""])
    encoding = draw.choice(["utf-8"] * 6 + ["utf-8-sig", "gb18030", "utf-16", "big5"])
    return text.encode(encoding, errors=draw.choice(["replace", "surrogatepass"]) if "utf" in encoding else "replace")


def damaged(draw: random.Random, content: bytes) -> bytes:
    """改几处：翻转、截断、删去、重复、插入。"""
    for _ in range(draw.choice([0, 0, 1, 1, 2, 5])):
        start = draw.randint(0, len(content))
        end = min(len(content), start + draw.choice([1, 1, 3, 30]))
        before, middle, after = content[:start], content[start:end], content[end:]
        content = draw.choice(
            [
                lambda b=before, m=middle, a=after: b + bytes(byte ^ (1 << draw.randrange(8)) for byte in m) + a,
                lambda b=before: b,
                lambda b=before, a=after: b + a,
                lambda b=before, m=middle, a=after: b + m * draw.choice([2, 2, 50]) + a,
                lambda b=before, m=middle, a=after: b + draw.choice(RAW) + m + a,
                lambda b=before, m=middle, a=after: b + draw.choice(WORDS).encode() + m + a,
            ]
        )()
    return content


def test_twenty_thousand_hostile_files(tmp_path):
    """两万多个坏文件：读出的歌是合法文字，舍弃的各有原因，不能读的是一行写明文件的中文。"""
    outcomes, kept = Counter(), []
    for suffix in SUFFIXES:
        draw = random.Random(suffix)
        path, mix = tmp_path / f"歌{suffix}", Counter()
        for number in range(FILES_PER_SUFFIX):
            path.write_bytes(damaged(draw, well_formed(draw, suffix)))
            try:
                songs, dropped = read_one(path)
            except Exception as error:
                raise AssertionError(f"第 {number} 个 {suffix}：{path.read_bytes()[:300]!r}") from error
            kept += songs
            mix += dropped + Counter(files=1, kept=len(songs))
        assert mix["kept"] > 500, mix  # 不能都在解码那一步就拦下
        assert mix["error"] > 300, mix
        outcomes += mix
    assert outcomes["files"] >= 20_000
    assert all(outcomes[reason] > 100 for reason in {*REASONS, "unread"}), outcomes
    for start in range(0, len(kept), 1000):
        keys = [content_key(song.text) for song in kept[start : start + 1000]]
        assert all(later > earlier for later, earlier in near_copies(keys).items())


def test_hostile_folders(tmp_path):
    """坏文件凑成的文件夹从头走到尾：要么得到能还原的词元流，要么是一行中文。"""
    draw = random.Random(7)
    outcomes = Counter()
    for number in range(60):
        workshop = Workshop(tmp_path / str(number))
        workshop.write("好.json", [make_song(seed) for seed in range(draw.randint(0, 6))])
        for index in range(draw.randint(1, 6)):
            suffix = draw.choice(SUFFIXES)
            path = workshop.lyrics / f"{index}{suffix}"
            path.write_bytes(well_formed(draw, suffix))
            if "error" in read_one(path)[1] and draw.random() < 0.9:
                path.unlink()
        try:
            corpus = workshop.prepare()
        except (CorpusError, TokenizerError) as error:
            message = str(error)
        else:
            message = ""
        outcomes["error" if message else "corpus"] += 1
        assert len(message.splitlines()) <= 1
        if message:
            continue
        for text in lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val):
            assert_clean_text(text)
        assert workshop.prepare().report == corpus.report
        assert not workshop.rebuilt
    assert min(outcomes["corpus"], outcomes["error"]) >= 5, outcomes


# ---- 任意的文字与 JSON ----

ANY_TEXT = st.text(st.characters()) | st.lists(st.sampled_from(WORDS) | st.text(st.characters(), max_size=2)).map(
    "".join
)
ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | ANY_TEXT,
    lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=5), inside, max_size=4),
    max_leaves=8,
)
ANY_SONG = st.fixed_dictionaries(
    {}, optional={"name": ANY_JSON, "singer": ANY_JSON, "lyric": ANY_JSON | st.lists(ANY_TEXT) | st.just(VERSE)}
)


@repeatable(max_examples=1500)
@given(ANY_TEXT)
def test_any_text_is_cleaned(text):
    """任意文字洗出来都合法、无空行、行首尾与行中没有多余空格；再洗几遍也是。"""
    for _ in range(3):
        text = clean_text(text)
        assert_clean_text(text)


PLAIN = sorted({word for word in WORDS if not set(word) & set("[]()<>&【】：:x×")})


@repeatable(max_examples=1000)
@given(st.lists(st.sampled_from(PLAIN) | st.text(st.characters(categories=["Lo", "Zs", "Cc", "Cf", "Cs"]), max_size=2)))
def test_cleaning_plain_text_twice_changes_nothing(words):
    """没有标记的文字洗一遍就干净了；叠了几层的标记只去外面一层，那是有意的。"""
    once = clean_text("".join(words))
    assert clean_text(once) == once


@repeatable(max_examples=700)
@given(ANY_JSON)
def test_any_name_is_cleaned(name):
    """任意 JSON 值当作歌名：一行不超长的合法文字。"""
    cleaned = clean_name(name)
    assert_valid(cleaned)
    assert cleaned == " ".join(cleaned.split())
    assert len(cleaned) <= LONGEST_NAME


@repeatable(max_examples=1000)
@given(st.lists(ANY_SONG | ANY_JSON, max_size=4), st.booleans(), st.sampled_from([".json", ".jsonl"]))
def test_any_json_is_counted(tmp_path, songs, ascii_only, suffix):
    """任意 JSON 值的数组：每个元素不是一首歌，就是记了原因的一次舍弃；一首也没有的文件整个略过。"""
    path = tmp_path / f"a{suffix}"
    lines = [json.dumps(song, ensure_ascii=ascii_only) for song in songs]
    text = "\n".join(lines) if suffix == ".jsonl" else f"[{','.join(lines)}]"
    path.write_bytes(text.encode("utf-8", errors="replace"))
    kept, dropped = read_one(path)
    assert dropped == {"unread": 1} or len(kept) + sum(dropped.values()) == len(songs)
    assert "error" not in dropped


@repeatable(max_examples=300)
@given(st.binary(max_size=200), st.sampled_from(SUFFIXES))
def test_any_bytes_are_read_or_refused(tmp_path, content, suffix):
    """任意字节。"""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(content)
    read_one(path)


@repeatable(max_examples=300)
@given(
    st.lists(
        st.text("今夜我在风aB1", max_size=20) | st.sampled_from(["", "今夜我在风里等", VERSE, VERSE * 2]), max_size=8
    )
)
def test_any_keys_are_compared(keys):
    """任意长短的歌都能比较：重复的一首总指向先前的一首。"""
    copies = near_copies(keys)
    assert all(kept < copy for copy, kept in copies.items())


# ---- 一行几兆字 ----

RUNS = (
    [" ", "\n", "\r", "\t", "\0", "\x85", "\u2028", "\u3000", "[", "]", "(", "（", "【", "<", ">", "&", "x"]
    + ["*", ":", "：", "，"]
    + ["1", "-", "_", "♪", "a", "词", "作词", "合", "间奏", "我", "\ud800", "\u200b", " \n", "\n ", "\n["]
    + [" \u200b", " [0:00]"]
    + ["x ", "x2 ", "(x", " (x2)", "[ ", "* ", "<b ", "<br ", "</", "&#", "&#1", "&lt;", "[00:", "[00:00]"]
    + ["[ti:", "verse "]
    + ["verse1 ", "(间奏 ", "词/", "词 ", "作词/", "op", "lyrics ", "www.", "未经", "副歌.", "男 ", "x [0:00]"]
    + ["今夜我，"]
)


@pytest.mark.parametrize("run", RUNS, ids=ascii)
def test_cleaning_a_long_run_is_linear(run):
    """任何字符连写几万遍，放在行首、行中、各种标记之后，都不会让正则表达式卡住。"""
    body = run * (30_000 // len(run))
    text = "\n".join([body, f"今夜我{body}x", f"[verse{body}我", f"<br{body}我", f"(男{body}我", f"作词{body}："])
    with limit(3):
        assert_clean_text(clean_text(text))
        clean_name(text)


@pytest.mark.parametrize("start", ["", "<br", "<", "[verse", "[", "(男", "x", "今夜我(x", "[ti", "作词", "词", "副歌"])
def test_spaces_between_parts_of_a_mark_are_linear(start):
    """标记的两部分之间有几十万个空格（夹着看不见的字符，合并不了）也不慢。"""
    gaps = " " * 200_000, " \u200b" * 200_000
    with limit(10):
        assert_clean_text(clean_text("\n".join(f"{start}{gap}我" for gap in gaps)))


@pytest.mark.parametrize("run", ["今夜我", "\n", "[00:00.01]", "[", "词 ", "&lt;br&gt;"], ids=ascii)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_megabyte_lines(tmp_path, run, suffix):
    """一兆字的一行，四种文件都在几秒内读完。"""
    path = tmp_path / f"a{suffix}"
    text = run * (1_000_000 // len(run)) + VERSE
    path.write_text(json.dumps([{"lyric": text}]) if suffix == ".json" else text, encoding="utf-8")
    if suffix == ".jsonl":
        path.write_text(json.dumps({"name": text, "lyric": [text]}), encoding="utf-8")
    with limit(20):
        (song,), dropped = read_one(path)
    assert not dropped
    assert VERSE[-9:] in song.text


def test_many_times_before_a_long_line(tmp_path):
    """几万个时间之后一句五十万字的话：不会展开成几十 GB。"""
    path = tmp_path / "a.lrc"
    path.write_text("[00:01.00]" * 50_000 + "今" * 500_000, encoding="utf-8")
    (raw,) = read_file(path)
    count = len(read_karaoke(raw.lyric, True).text.split("\n"))
    assert 1 <= count <= MOST_REPEATS


def test_a_song_that_is_one_long_line_trains_a_tokenizer(tmp_path):
    """只有几首几十万字不分行的歌：照样训练得出分词器，词元一个不少。"""
    workshop = Workshop(tmp_path)
    texts = {"".join(make_lines(seed, 60_000)) for seed in range(3)}
    workshop.write("a.json", [{"lyric": text} for text in texts])
    with limit(60):
        corpus = workshop.prepare()
    assert lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val) == texts


# ---- 文件夹里的怪东西 ----


@pytest.fixture
def workshop(tmp_path):
    shop = Workshop(tmp_path)
    shop.write("好.json", [make_song(seed) for seed in range(10)])
    return shop


def test_json_nested_a_hundred_thousand_deep(workshop):
    """十万层的 JSON 是一行错误；看不出有歌的，略过。"""
    (workshop.lyrics / "深.json").write_text("[" * 100_000 + '{"lyric": "a"}' + "]" * 100_000)
    with pytest.raises(CorpusError, match=r"深\.json：JSON 嵌套过深"):
        workshop.prepare()
    (workshop.lyrics / "深.json").unlink()
    (workshop.lyrics / "深.jsonl").write_text("{}\n" + '{"lyric":' * 100_000)
    with pytest.raises(CorpusError, match=r"深\.jsonl：第 2 行：JSON 嵌套过深"):
        workshop.prepare()


def test_a_hundred_thousand_empty_songs(workshop):
    """十万首空歌：一首不漏地数出来，很快。"""
    empty = [{"lyric": []}, {}, {"lyric": "作词：某人"}, {"lyric": "\u200b"}]
    workshop.write("空.json", empty * 25_000)
    with limit(30):
        report = workshop.prepare().report
    assert report["songs_read"] == 100_010
    assert report["dropped"] == {"歌词为空": 25_000, "缺少 lyric": 25_000, "清洗后为空": 50_000}
    assert report["songs"] == 10


def test_mixed_encodings_in_one_folder(tmp_path):
    """一个文件夹里 UTF-8、带 BOM、GB18030 各一个，NUL 夹在字间：都读得一字不差。"""
    workshop = Workshop(tmp_path)
    texts = ["\n".join(make_lines(seed)) for seed in range(4)]
    workshop.lyrics.mkdir()
    for text, encoding in zip(texts, ["utf-8", "utf-8-sig", "gb18030", "utf-8"], strict=True):
        (workshop.lyrics / f"{encoding}{ord(text[0])}.txt").write_bytes(text.encode(encoding))
    (workshop.lyrics / "nul.txt").write_bytes("\0".join(texts[3]).encode())
    corpus = workshop.prepare()
    assert lyrics_of(corpus, corpus.train) | lyrics_of(corpus, corpus.val) == set(texts)
    assert corpus.report["identical"] == 1


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b" \n", b"\0\0"], ids=ascii)
@pytest.mark.parametrize("suffix", [".jsonl", ".txt", ".lrc"])
def test_empty_files(workshop, content, suffix):
    """空文件、只有 BOM 的文件：不算歌，不碍事（jsonl 里的 NUL 是写错的一行）。"""
    (workshop.lyrics / f"空{suffix}").write_bytes(content)
    if (suffix, content) == (".jsonl", b"\0\0"):
        with pytest.raises(CorpusError, match="第 1 行第 1 列"):
            workshop.prepare()
        return
    report = workshop.prepare().report
    assert report["songs"] == 10
    assert report["dropped_examples"].keys() <= {"歌词为空", "清洗后为空"}
    assert report["songs_read"] == 10 + (suffix != ".jsonl")


@pytest.mark.parametrize("content", [b"", b"\xef\xbb\xbf", b"\0"], ids=ascii)
def test_empty_json_is_an_error(workshop, content):
    """空的 json 不是合法的 JSON：说出文件与位置。"""
    (workshop.lyrics / "空.json").write_bytes(content)
    with pytest.raises(CorpusError, match=r"空\.json：第 1 行第 1 列"):
        workshop.prepare()


def test_things_that_are_not_files(workshop):
    """叫 x.json 的文件夹、管道、指向自己或上级的链接、断了的链接：都略过，不会卡住。"""
    (workshop.lyrics / "x.json").mkdir()
    os.symlink(workshop.lyrics, workshop.lyrics / "上级")
    os.symlink("圈.json", workshop.lyrics / "圈.json")
    os.symlink("没有.txt", workshop.lyrics / "断.txt")
    if hasattr(os, "mkfifo"):
        os.mkfifo(workshop.lyrics / "a.txt")
    with limit(20):
        assert [path.name for path in find_files(workshop.lyrics).files] == ["好.json"]
        assert workshop.prepare().report["songs_read"] == 10


@pytest.mark.parametrize("name", [b"\xff\xfe\xce.txt", "换\n行\x1b[2J\u202e.txt".encode()], ids=ascii)
@pytest.mark.parametrize("content", [VERSE.encode(), b"hello", b"\xff\xff\xff"], ids=["song", "dropped", "error"])
def test_strange_file_names(workshop, name, content):
    """不成字的、带换行与控制字符的文件名：读得了，消息与报告仍是一行能显示的文字。"""
    try:
        Path(os.path.join(os.fsencode(workshop.lyrics), name).decode("utf-8", "surrogateescape")).write_bytes(content)
    except (OSError, UnicodeError):
        pytest.skip("这个文件系统不收这样的文件名")
    try:
        report = workshop.prepare(progress=assert_valid).report
    except CorpusError as error:
        assert content == b"\xff\xff\xff"
        shown = [str(error)]
    else:
        shown = list(report["dropped_examples"].values())
        assert report["songs"] == 10 + (content == VERSE.encode())
    for message in shown:
        assert_valid(message)
        assert "\n" not in message


def test_unreadable_files_and_folders(workshop, monkeypatch):
    """没有权限、磁盘出错、读到一半被删的文件：说出是哪一个、为什么。"""

    def broken(number):
        def call(*_, **__):
            raise OSError(number, os.strerror(number))

        return call

    for method, number in [("read_bytes", errno.EACCES), ("is_file", errno.EACCES), ("iterdir", errno.EIO)]:
        with monkeypatch.context() as patch:
            patch.setattr(Path, method, broken(number))
            with pytest.raises(CorpusError, match=f"读不了 .*lyrics.*：{os.strerror(number)}"):
                workshop.prepare()
    with monkeypatch.context() as patch:
        patch.setattr(
            tokens, "fingerprint_files", lambda *_: workshop.lyrics.rename(workshop.lyrics.with_name("b")).name
        )
        with pytest.raises(CorpusError, match="读不了 .*lyrics"):
            workshop.prepare()


# ---- 写满的磁盘 ----

WRITES = ("bpe.model", "tokenizer.json", "train.bin", "val.bin", "report.json")


def contents(workshop: Workshop) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in [*workshop.cache.iterdir(), workshop.model]}


class FullDisk:
    """写到一半就没有空间的文件。"""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("name", WRITES)
@pytest.mark.parametrize("moment", ["open", "write", "replace"])
def test_a_full_disk_is_one_line(workshop, monkeypatch, name, moment):
    """哪个文件写不了都是一行中文，写明文件与原因；不留临时文件，还没轮到的旧文件不动；有了空间就接着来。"""
    workshop.prepare()
    workshop.write("新.json", [make_song(seed) for seed in range(10, 20)])
    before = contents(workshop)
    replace = os.replace

    def failing_open(path, *mode):
        if mode == ("wb",) and path.name.startswith(name):
            if moment == "write":
                return FullDisk(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return open(path, *mode)

    def failing_replace(source, target):
        if target.name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        if moment == "replace":
            patch.setattr(os, "replace", failing_replace)
        else:
            patch.setattr(tokens, "open", failing_open, raising=False)
        with pytest.raises(CorpusError, match=f"^写不了 .*{name}：{os.strerror(errno.ENOSPC)}$") as caught:
            workshop.prepare()
    assert len(str(caught.value).splitlines()) == 1
    after = contents(workshop)
    assert after.keys() == before.keys()
    pending = WRITES[WRITES.index(name) :]
    assert {name: after[name] for name in pending} == {name: before[name] for name in pending}
    assert workshop.prepare().report["songs"] == 20


def test_cache_folder_that_cannot_be_made(workshop):
    """缓存文件夹的位置上是个文件，或分词模型的位置上是个文件夹。"""
    workshop.cache.write_text("")
    with pytest.raises(CorpusError, match=r"^写不了 .*cache.*tokenizer\.json：\w+"):
        workshop.prepare()
    workshop.cache.unlink()
    workshop.model.unlink()
    workshop.model.mkdir()
    with pytest.raises(CorpusError, match=r"^写不了 .*bpe\.model：\w+"):
        workshop.prepare()
    assert list(workshop.model.parent.glob("*.tmp")) == []


def test_a_cache_that_cannot_be_read_back(workshop, monkeypatch):
    """刚写好的缓存读不回来：用手里的词元，与读缓存的一样。"""
    expected = workshop.prepare()
    monkeypatch.setattr(tokens, "read_stream", lambda *_: None)
    corpus = workshop.prepare()
    assert np.array_equal(corpus.train, expected.train)
    assert np.array_equal(corpus.val, expected.val)
    assert (corpus.report, corpus.fingerprint) == (expected.report, expected.fingerprint)


# ---- 放坏了的缓存 ----


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """准备好的缓存，与每个文件的原样。"""
    shop = Workshop(tmp_path_factory.mktemp("shelf"))
    shop.write("a.json", [make_song(seed) for seed in range(12)])
    corpus = shop.prepare()
    shop.streams = np.array(corpus.train), np.array(corpus.val)
    shop.corpus = Corpus(corpus.tokenizer, *shop.streams, corpus.fingerprint, corpus.report)
    shop.files = {path: path.read_bytes() for path in [*shop.cache.iterdir(), shop.model]}
    return shop


def assert_same_corpus(corpus: Corpus, shop: Workshop) -> None:
    assert all(np.array_equal(a, b) for a, b in zip((corpus.train, corpus.val), shop.streams, strict=True))
    assert corpus.report == shop.corpus.report
    assert corpus.fingerprint == shop.corpus.fingerprint


def place(path: Path, content: bytes) -> None:
    """换掉文件而不是改写它：旧的内存映射不受影响。"""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def test_damaged_caches_are_never_used(shelf):
    """几百种损坏：读缓存不是一无所得，就是与原来一模一样。"""
    draw, outcomes = random.Random(3), Counter()
    for number in range(900):
        path = shelf.cache / ("train.bin", "val.bin", "report.json")[number % 3]
        original = shelf.files[path]
        content = original if number % 2 else original[:100]
        place(path, damaged(draw, content + original[len(content) :]))
        identity = corpus_identity(shelf.corpus.fingerprint, 0.2)
        found = _load_cache(shelf.cache, shelf.corpus.tokenizer, identity)
        outcomes[found is None] += 1
        if found is not None:
            assert np.array_equal(found.streams[0], shelf.streams[0])
            assert np.array_equal(found.streams[1], shelf.streams[1])
        place(path, original)
    assert outcomes[True] > 300, outcomes
    assert outcomes[False] > 100, outcomes


def test_every_header_byte_matters_or_does_not(shelf):
    """文件头的每个字节改掉任一位：不用这份缓存，或读出同样的词元。"""
    path = shelf.cache / "train.bin"
    original = shelf.files[path]
    stored = _cache_fingerprint(shelf.corpus.tokenizer, corpus_identity(shelf.corpus.fingerprint, 0.2))
    for place_of_bit in range(8 * 64):
        content = bytearray(original)
        content[place_of_bit // 8] ^= 1 << place_of_bit % 8
        place(path, content)
        stream = read_stream(path, stored)
        assert stream is None or np.array_equal(stream, shelf.streams[0])
    place(path, original)


def test_damaged_caches_are_rebuilt(shelf):
    """缓存、记录、分词模型的任何损坏，再启动一次都得到同样的语料，此后不再重建。"""
    draw = random.Random(4)
    for number in range(60):
        path = list(shelf.files)[number % len(shelf.files)]
        place(path, damaged(draw, shelf.files[path][: draw.choice([None, -1, 10, 0])]))
        assert_same_corpus(shelf.prepare(), shelf)
        assert_same_corpus(shelf.prepare(), shelf)
        assert not shelf.rebuilt
        assert shelf.model.read_bytes() == shelf.files[shelf.model]


@pytest.mark.parametrize("change", [{}, {"songs": 5}, None, [], "x", float("nan"), "nested"], ids=str)
def test_reports_of_wrong_shape_are_rebuilt(shelf, change):
    """report.json 仍是合法的 JSON，只是少了项、换了类型、嵌套极深：重建，而不是留给显示的人去出错。"""
    path = shelf.cache / "report.json"
    noted = json.loads(shelf.files[path])
    text = json.dumps({**noted, "report": change})
    place(path, text.replace('"nested"', "[" * 50_000 + "]" * 50_000).encode())
    assert_same_corpus(shelf.prepare(), shelf)
    assert shelf.rebuilt
    place(path, json.dumps({"fingerprint": noted["fingerprint"]}).encode())
    assert_same_corpus(shelf.prepare(), shelf)
    assert shelf.rebuilt


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_truncated_tokenizer_is_trained_again(shelf, kept):
    """分词模型断了半截，哪怕记录里的哈希也跟着改了：重训。"""
    content = shelf.files[shelf.model][:kept]
    place(shelf.model, content)
    assert_same_corpus(shelf.prepare(), shelf)
    assert shelf.trained
    note = json.loads(shelf.files[shelf.cache / "tokenizer.json"])
    place(shelf.model, content)
    if kept in (0, 1):
        note["sha256"] = hashlib.sha256(content).hexdigest()
        place(shelf.cache / "tokenizer.json", json.dumps(note).encode())
    assert_same_corpus(shelf.prepare(), shelf)
    assert shelf.trained


def test_a_raw_song_of_any_type_has_a_reason():
    """不经文件、直接构造的任何类型也各有归宿。"""
    for lyric in (b"bytes", {1}, object(), 0, False, (), range(3)):
        assert clean_song(RawSong(lyric, lyric, lyric, "")) in REASONS
