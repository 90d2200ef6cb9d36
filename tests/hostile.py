"""胡乱改过的歌词文件，与「读出来的都是合法文字」的判断。"""

import contextlib
import json
import random
import signal
import unicodedata
from collections import Counter
from pathlib import Path

from workshop import VERSE

from corpus.cleaning import FEWEST_HAN, LONGEST_NAME, Song
from corpus.files import CorpusError
from corpus.songs import read_songs

SUFFIXES = (".json", ".jsonl", ".txt", ".lrc")
REASONS = {"缺少 lyric", "格式不对", "歌词为空", "清洗后为空", "仍像标记", "汉字不足 10 个"}
DIRECTION_MARKS = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def quiet(message: str) -> None:
    message.encode("utf-8")


@contextlib.contextmanager
def limit(seconds: float):
    """用了这么久的 CPU（别的程序再忙也不算），或干等了十倍这么久，就失败，而不是一直等下去。"""

    def give_up(*_):
        raise AssertionError(f"{seconds} 秒还没做完")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    timers = {signal.SIGPROF: (signal.ITIMER_PROF, seconds), signal.SIGALRM: (signal.ITIMER_REAL, 10 * seconds)}
    previous = {number: signal.signal(number, give_up) for number in timers}
    for timer, duration in timers.values():
        signal.setitimer(timer, duration)
    try:
        yield
    finally:
        for number, (timer, _) in timers.items():
            signal.setitimer(timer, 0)
            signal.signal(number, previous[number])


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
    assert "\n\n\n" not in text
    assert text == text.strip("\n")
    for line in text.split("\n"):
        assert line == " ".join(line.split())


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
        songs, *_ = read_songs([path], report, quiet)
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
