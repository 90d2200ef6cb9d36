"""一首歌的原文 → 一行一句的干净文字，连同去掉的行和原因。"""

import html
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from corpus.credits import PART, find_credits, maybe_credits
from corpus.karaoke import HAN_LETTER, KaraokeError, is_ttml, read_karaoke
from corpus.notices import VOICES
from corpus.stanzas import with_stanzas

CLEANING_VERSION = 3  # 读取、清洗、去重或编码的规则有变时加一，旧缓存随之重建
FEWEST_HAN = 10  # 少于这么多汉字的不算一首中文歌
LONGEST_NAME = 40  # 歌名、歌手最多取这么多字
MOST_MARKUP = 0.1  # 清洗之后还有这么多行像标记，就不是歌词


class RawSong(NamedTuple):
    """读到而未清洗的一首。

    Attributes:
        where: 在哪个文件的哪里。
        stem: 文件名（不含扩展名），没有别的歌名时用它。
        timed: 已知带时间（*.lrc 一类）。
        whole_file: 一个文件就是这一首；这样的才可能是别的歌的合集。
    """

    name: Any
    singer: Any
    lyric: Any
    where: str
    stem: str = ""
    timed: bool = False
    whole_file: bool = False


class Song(NamedTuple):
    name: str
    singer: str
    text: str  # 行之间是一个换行，节之间一个空行


class DroppedLine(NamedTuple):
    """清洗时去掉的一行。"""

    line: str
    reason: str


# 行可能有几兆字长：这里每个式子的用时都与字数成正比（相邻的两个 * 不能认得同样的字，开头的 * 不跨行）。
_ABSURD_REFERENCE = re.compile(r"&#[0-9]{8,};?")  # 码位至多七位；几千位的数 int() 不收
_HTML_PARAGRAPH = re.compile(
    r"<\s*(?:/(?:div|ul|ol|section|article|blockquote|h[1-6])|(?:/?p|hr)\b[^<>\n]{0,200})\s*(?:/\s*)?>", re.I
)
_HTML_BREAK = re.compile(r"<\s*(?:br\b[^<>\n]{0,200}|/li|/tr)\s*(?:/\s*)?>", re.I)
_HTML_TAG = re.compile(
    r"</?(?:p|div|span|b|i|u|em|strong|font|a|li|ul|ol|br|h[1-6]|section|article|blockquote|center)\b[^<>\n]{0,200}>",
    re.I,
)
_ESCAPED = re.compile(r"\\{1,4}(?:r\\{1,4}n|[nr])|\\{1,4}(t|\"|/|u[0-9a-fA-F]{4})")
_LRC_TAG = re.compile(
    r"^ *\[(?:ti|ar|al|by|offset|re|ve|au|length|la|id|hash|sign|qq|total|language) *:[^\]\n]*\]", re.M | re.I
)
_LINE_BREAK = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
_SPACE = re.compile(r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
# 控制、零宽、方向、变体、代理、非字符、私用区
_INVISIBLE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    r"\ufdd0-\ufdef\ufff0-\uffff\U0001fffe\U0001ffff\U0002fffe\U0002ffff\U0003fffe\U0003ffff"
    r"\ud800-\udfff\ue000-\uf8ff\U000e0000-\U0010ffff]"
)
_PART_PREFIX = re.compile(
    r"^ *[\[【（(〔{] *(?:verse|pre-?chorus|chorus|bridge|hook|intro|outro|interlude|refrain|ending|rap|solo|music|"
    r"repeat|"
    r"主歌|副歌|导歌|導歌|前奏|间奏|間奏|尾奏|过门|過門|过渡|過渡|桥段|橋段|独白|獨白|念白|说唱|說唱|合唱|重复|"
    r"重複|反复|反覆|伴奏|尾声|尾聲)"
    r" *(?:[0-9A-Za-z一二三四五六]{1,3} *)?[\]】）)〕}] *[:：]?",
    re.M | re.I,
)
_VOICE_PREFIX = re.compile(
    r"^ *(?:[\[【（(] *)?(?:男[声聲]?|女[声聲]?|合唱?|男女|[齐齊]唱?|童[声聲]|[对對]唱|rap) *(?:[\]】）)] *)?[:：]|"
    r"^ *[\[【](?:男[声聲]?|女[声聲]?|合唱?|男女|[齐齊]唱?|童[声聲]|[对對]唱|rap)[\]】] *(?=\S)",
    re.M | re.I,
)
_TIMES_SUFFIX = re.compile(r"(?:(?<![\d ]) *[xX×*] *\d{1,2}|(?<! ) *[(（\[【] *[xX×*] *\d{1,2} *[)）\]】]) *$", re.M)


def unescape(text: str) -> str:
    """HTML 的实体（转义过两三遍的也是）与写成两个字符的 `\\n`。"""
    for _ in range(3):
        if "&" not in text:
            break
        before, text = text, html.unescape(_ABSURD_REFERENCE.sub("", text))
        if before == text:
            break
    return _ESCAPED.sub(_unescaped, text) if "\\" in text else text


def _unescaped(found: re.Match[str]) -> str:
    kind = found[1]
    if kind is None:
        return "\n"
    return {"t": " ", '"': '"', "/": "/"}.get(kind) or chr(int(kind[1:], 16))


def clean_text(text: str) -> str:
    """歌词原文 → 一行一句的干净文字（行间一个换行，节间一个空行，结果是合法的 Unicode）。

    Raises:
        KaraokeError: 是 TTML 而 XML 有误。
    """
    return _clean(read_karaoke(unescape(text)).text)


def _clean(text: str, name: str = "", dropped: list[DroppedLine] | None = None) -> str:
    """没有时间与标签的歌词 → 干净文字。name: 歌名，用来认出开头的歌名行；dropped: 去掉的行记在这里。"""
    text = _LINE_BREAK.sub("\n", text)
    if "<" in text:
        text = _HTML_TAG.sub("", _HTML_BREAK.sub("\n", _HTML_PARAGRAPH.sub("\n\n", text)))
    text = _INVISIBLE.sub("", _SPACE.sub(" ", text))
    if "  " in text:  # 夹在看不见的字符之间的
        text = _SPACE.sub(" ", text)
    if maybe_credits(text):
        if "[" in text:
            text = _LRC_TAG.sub("", text)
        lines = text.split("\n")
        leave_out = find_credits(lines, name)
        if dropped is not None:
            dropped += [DroppedLine(lines[place].strip(), reason) for place, reason in sorted(leave_out.items())]
        text = "\n".join(_without_left_out(lines, leave_out))
        text = _TIMES_SUFFIX.sub("", _VOICE_PREFIX.sub("", _PART_PREFIX.sub("\n", text)))
    return "\n".join(with_stanzas([" ".join(line.split()) for line in text.split("\n")]))


def _without_left_out(lines: list[str], leave_out: dict[int, str]) -> Iterator[str]:
    """不唱的行去掉；段落标记与夹在中间的制作信息留下空行。写明了分节的，换人唱不另起一节。"""
    marked = {place for place, reason in leave_out.items() if reason in (PART, "制作信息")}
    voices = {place for place in marked if VOICES.match(lines[place].strip())}
    sung = [place for place, line in enumerate(lines) if place not in leave_out and line.strip()]
    blank = {place for place, line in enumerate(lines) if not line.strip()} | (marked - voices)
    if sung and any(sung[0] < place < sung[-1] for place in blank):
        marked -= voices
    for place, line in enumerate(lines):
        if place in marked:
            yield "\n"  # 两个空行：隔行空的歌里也认得出
        elif place not in leave_out:
            yield line


def clean_name(name: Any) -> str:
    """歌名或歌手 → 一行干净文字；数成为文字，几个歌手用 / 连起来，别的当作没有。"""
    if isinstance(name, (list, tuple)):
        return "/".join(filter(None, map(clean_name, name)))[:LONGEST_NAME].strip()
    if isinstance(name, dict):  # [{"id": 1, "name": "甲"}]
        return clean_name(name.get("name", ""))
    if isinstance(name, float):
        name = int(name) if name.is_integer() else "" if name != name else name
    if isinstance(name, (int, float)) and not isinstance(name, bool):
        name = str(name)[: LONGEST_NAME + 1]
    if not isinstance(name, str):
        return ""
    name = _INVISIBLE.sub("", _SPACE.sub(" ", _LINE_BREAK.sub(" ", unescape(name).replace("\n", " "))))
    return " ".join(name.split())[:LONGEST_NAME].strip()


# 清洗之后还像标记的行：括号里是数或代码，JSON、XML、反斜杠
_MARKUP = re.compile(
    r"[\[［<＜{｛(（][^\]］>＞}｝)）\n\u3400-\u9fff]{0,3}\d[\d\s:：.．,，;+\-/]*\d[^\]］>＞}｝)）\n\u3400-\u9fff]{0,3}[\]］>＞}｝)）]|"
    r"\d{1,3}[:：]\d{1,2}[.,:：]\d{1,4}|-->|"
    r"[\[［{｛][\d\s:：.,-]*\d[\d\s:：.,-]*[\]］}｝]?|[<＜][\d\s:：.,-]*\d[\d\s:：.,-]*[>＞]|"
    r"[\[［][A-Ga-g][#b♯♭]?(?:m|maj|min|dim|aug|"
    r"sus)?\d{0,2}[\]］]|"
    r"[\[［][A-Za-z#_]\w*[:：][^\[\]［］\n]*[\]］]|"
    r'"[\w ]{1,30}"\s*:|\{\s*"|"\s*[,}\]]\s*$|^\s*[\[{\]}]+,?\s*$|</?[A-Za-z][\w:.-]*(?:\s[^<>\n]*)?/?>|\{\\\w|'
    r"\\[a-zA-Z]|&#?\w{2,8};|^(?:Dialogue|Style|Format)\s*:",
    re.M,
)
_MARKUP_CHARACTER = re.compile(r"[\[\]［］<>＜＞{}｛｝\\\"&]|\d[:：]\d|[(（]-?\d")


def looks_like_markup(text: str) -> bool:
    """清洗之后，还有超过十分之一的行像时间、括号里的数或 JSON。"""
    if not _MARKUP_CHARACTER.search(text):
        return False
    lines = text.split("\n")
    return sum(_MARKUP.search(line) is not None for line in lines) > MOST_MARKUP * len(lines)


def _lyric_text(lyric: Any) -> str | None:
    """lyric 字段 → 一段文字：文字、行的列表、段的列表、`[{"time": …, "text": …}]`；别的是 None。"""
    if isinstance(lyric, str):
        return lyric
    if isinstance(lyric, dict):
        keys = ("lyric", "lyrics", "text", "words", "content", "line", "lines", "tx")
        inner = next((lyric[key] for key in keys if key in lyric), 0)
        return "" if inner is None else _lyric_text(inner) if isinstance(inner, (str, list)) else None
    if isinstance(lyric, Sequence):
        texts = [part for part in lyric if isinstance(part, str)]
        if len(texts) == 1 and len(lyric) > 1 and all(isinstance(part, (str, int, float)) for part in lyric):
            return texts[0]  # [时间, "行"]
        parts = ["" if part is None else _lyric_text(part) for part in lyric if not isinstance(part, (int, float))]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or (lyric and all(part is None or isinstance(part, (int, float)) for part in lyric)):
            return None
        return ("\n\n" if any("\n" in part.strip("\n") for part in known) else "\n").join(known)  # 一段段的，或一行行的
    return None


def clean_song(raw: RawSong, dropped: list[DroppedLine] | None = None) -> Song | str:
    """清洗一首歌；不能用时返回原因。

    Args:
        dropped: 去掉的行记在这里。
    """
    if raw.lyric is None:
        return "缺少 lyric"
    lyric = _lyric_text(raw.lyric)
    if lyric is None:
        return "格式不对"
    if not lyric.strip():
        return "歌词为空"
    try:
        read = read_karaoke(lyric if is_ttml(lyric) else unescape(lyric), raw.timed)
    except KaraokeError:
        return "仍像标记"
    name = clean_name(raw.name) or clean_name(read.name) or clean_name(raw.stem)
    if dropped is not None:
        dropped += [DroppedLine(line.strip(), "译文") for line in read.foreign]
    text = _clean(read.text, name, dropped)
    if not text:
        return "清洗后为空"
    if looks_like_markup(text):
        return "仍像标记"
    if len(HAN_LETTER.findall(text)) < FEWEST_HAN:
        return f"汉字不足 {FEWEST_HAN} 个"
    return Song(name, clean_name(raw.singer) or clean_name(read.singer), text)
