"""播放器的歌词 → 唱出来的行：LRC 与逐字 LRC、qrc、krc、yrc、lys、ttml、字幕。

按内容认，与扩展名无关：

- 时间写法不一：`[00:12.34]`、逗号、小时、毫秒四位、负数、全角、`-1` 后缀、双括号；
- 行首的一串时间是这一行要唱的各个时刻，行内的是逐字的时间，去掉之后字连起来；
- qrc、krc、yrc 的行首是 `[起,长]` 毫秒，字的时间是 `(起,长)`、`<起,长,0>`、`(起,长,0)`；lys 的行首是 `[声部]`；
- 同一时刻的几行，第一行是唱的；其余若是别的语言，是翻译或注音，不要。
"""

import html
import re
from collections import Counter
from typing import NamedTuple
from xml.etree import ElementTree

HAN = "\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af"

_OPEN, _CLOSE = r"[\[［]{1,2}", r"[\]］]{1,2}"
_SIGN = r"[ \t]{0,3}[-+−]?[ \t]{0,3}"
_GAP = r"[ \t]{0,3}"
_CLOCK = rf"{_SIGN}\d{{1,9}}(?:{_GAP}[:：.．,，;；]{_SIGN}\d{{1,9}}){{1,3}}{_GAP}(?:[-−~]{_GAP}\d{{1,3}}{_GAP})?"
_STAMP = re.compile(rf"{_OPEN}({_CLOCK}){_CLOSE}")
_WORD_STAMP = re.compile(rf"{_OPEN}{_CLOCK}{_CLOSE}|[<＜〈]{{1,2}}{_CLOCK}[>＞〉]{{1,2}}")
_LEADING = re.compile(
    rf"(?:[ \t\u3000]*(?:{_WORD_STAMP.pattern}|[(（]\d{{1,3}}[:：]\d{{1,2}}(?:[.:：]\d{{1,4}})?[)）]|"
    rf"【\d{{1,3}}[:：]\d{{1,2}}(?:[.:：]\d{{1,4}})?】))+"
)
_SYLLABLE = re.compile(
    r"[(（<＜][ \t]?-?\d{1,9}[ \t]?[,，][ \t]?-?\d{1,9}(?:[ \t]?[,，][ \t]?-?\d{1,9}){0,2}[ \t]?[)）>＞]"
)
_PART_NUMBER = re.compile(r"[ \t]*\[\d{0,2}\]")  # lys 的声部
_NUMBERS = re.compile(r"[-−]?[ \t]*\d+")
_SUBTITLE_TIME = re.compile(r"^[ \t]*(?:\d{1,2}[:：])?\d{1,2}[:：]\d{1,2}[.,，]\d{1,3}[ \t]*-->.*$")
_TAG = re.compile(
    r"[ \t\ufeff]*[\[［]{1,2}[ \t]*([A-Za-z#][\w#]{0,15}|歌名|歌曲|歌手|演唱|专辑|作词|作曲|"
    r"编曲)[ \t]*[:：](.*?)[\]］]{1,2}[ \t]*(?=[\[［]|$)"
)
_KNOWN_TAGS = frozenset(
    "ti ar al by offset re ve au length la id hash sign qq total language lang kana tool lr mu genre t_time "
    "encoding trans ed "
    "au tl version editor bg album title artist author copyright comment total_time type bpm key "
    "歌名 歌曲 歌手 演唱 专辑 作词 作曲 编曲".split()
)
_HEAD_LINE = re.compile(r'^[ \t\ufeff]*\{"t":-?\d+,"c":\[.*\]\}[ \t]*,?[ \t]*$')
_STAMPED = re.compile(
    r"[\[［<＜(（【][ \t]{0,3}[-+−]?[ \t]{0,3}\d|[\[［][ \t]*(?:[A-Za-z#][\w#]{0,15}|歌名|歌手)[ \t]*[:：]|-->|"
    r"\{\"t\":|<tt[\s>]|"
    r"LyricContent=|\[\d{0,2}\]"
)
_QRC_CONTENT = re.compile(r"LyricContent=([\"'])")
_TTML_START = re.compile(r"<(?:\w{1,20}:)?tt[\s>]")
_ROMANISED = 0.25  # 拉丁词数与汉字数相差不到这么多，就是注音
_JOINT = "\0"


class KaraokeError(ValueError):
    """TTML 不是合法的 XML；消息写明行与列。"""


class Lyric(NamedTuple):
    """读好的歌词；name、singer 来自 `[ti:]`、`[ar:]`，没有则为空。"""

    text: str
    name: str = ""
    singer: str = ""
    foreign: tuple[str, ...] = ()  # 没有要的译文与注音


class _Line(NamedTuple):
    time: float | None
    words: str
    repeats: tuple[float, ...] = ()  # 行首其余的时刻
    stamped: bool = True  # 这一行自己有时间，还是随前一行


def is_ttml(text: str) -> bool:
    place = len(text) - len(text.lstrip("\ufeff \t\r\n"))
    while text.startswith(("<?", "<!"), place):  # 声明、注释、DOCTYPE
        end = text.find("-->" if text.startswith("<!--", place) else ">", place)
        if end < 0:
            return False
        place = end + (3 if text.startswith("-->", end) else 1)
        place += len(text[place : place + 2000]) - len(text[place : place + 2000].lstrip())
    return _TTML_START.match(text, place) is not None


def read_karaoke(text: str, timed: bool = False) -> Lyric:
    """去掉时间与标签，按时刻排好；没有时间的文字原样返回。

    Args:
        timed: 已知是 LRC 一类，哪怕只有几行有时间。

    Raises:
        KaraokeError: 是 TTML 而 XML 有误。
    """
    if not (timed or _STAMPED.search(text)):
        return Lyric(text)
    if is_ttml(text):
        return _read_ttml(text)
    if "LyricContent=" in text and (opening := _QRC_CONTENT.search(text)):
        closing = re.compile(opening[1] + r"\s{0,9}/?>").search(text, opening.end())
        text = html.unescape(text[opening.end() : closing.start() if closing else len(text)])
    tags: dict[str, str] = {}
    foreign: list[str] = []
    lines: list[_Line] = []
    raw = [line for glued in text.replace(_JOINT, "").splitlines() for line in _unglued(glued)]
    stamped = sum(1 for line in raw if _LEADING.match(line))
    for number, line in enumerate(raw):
        while (tag := _TAG.match(line)) and (stamped or timed or tag[1].lower() in _KNOWN_TAGS):
            tags.setdefault(tag[1].lower(), tag[2].strip())
            line = tag[2] if tag[1].lower() == "bg" else line[tag.end() :]  # [bg:(啦啦)] 是和声
            if not line or tag[1].lower() == "bg":
                break
        if tag and not line:
            continue
        counting = line.strip().isdigit() and number + 1 < len(raw) and _SUBTITLE_TIME.match(raw[number + 1])
        if not (counting or _HEAD_LINE.match(line) or _SUBTITLE_TIME.match(line) or line.strip() == "WEBVTT"):
            lines.append(_read_line(line))
    words = [line.words for line in lines if line.words.strip(" \t\0")]
    joined = sum(_JOINT in line.strip(" \t\0") for line in words)
    by_word = 2 * joined > len(words)
    if stamped and (timed or 2 * sum(line.time is not None for line in lines) >= len(words) > 0):
        lines = [line._replace(words=_SINGER_MARK.sub("", line.words)) for line in lines]
        lines, foreign = _without_translations(_in_order(lines, by_word))
    sung = _joined([line.words for line in lines])
    if any(map(_SUBTITLE_TIME.match, raw)):  # 字幕的每一条之间都空一行，不是分节
        sung = [line for line in sung if line.strip()]
    name, singer = (next(filter(None, map(tags.get, keys)), "") for keys in (_NAME_TAGS, _SINGER_TAGS))
    return Lyric("\n".join(sung), name, singer, tuple(_joined(foreign)))


_NAME_TAGS, _SINGER_TAGS = ("ti", "title", "歌名", "歌曲"), ("ar", "artist", "歌手", "演唱")
_SINGER_MARK = re.compile(r"^[ \t]*(?:\[[A-Z]\d?[:：]\]|(?:v\d{1,3}|[FMD])[:：](?=\s|[^\x00-\x7f]))[ \t]*")


def _unglued(line: str) -> list[str]:
    """换行丢了的 LRC：一行里好几个时间，每段有好几个字，就在时间前断开；逐字的时间每段只有一两个字。"""
    stamps = list(_STAMP.finditer(line))
    if len(stamps) < 3:
        return [line]
    pieces = [line[a.end() : b.start()] for a, b in zip(stamps, stamps[1:], strict=False)] + [line[stamps[-1].end() :]]
    sizes = [len(re.findall(rf"[{HAN}]|[A-Za-z']+", piece)) for piece in pieces if piece.strip()]
    if len(sizes) < 2 or sum(sizes) < 3 * len(sizes):
        return [line]
    starts = [0] + [b.start() for a, b in zip(stamps, stamps[1:], strict=False) if line[a.end() : b.start()].strip()]
    return [line[a:b] for a, b in zip(starts, [*starts[1:], len(line)], strict=True)]


def _read_line(line: str) -> _Line:
    leading = _LEADING.match(line)
    prefix = _PART_NUMBER.match(line) if leading is None else None
    rest = line[start.end() :] if (start := leading or prefix) else line
    syllables = _SYLLABLE.subn(_JOINT, rest)
    if syllables[1] and (leading or prefix or syllables[1] > 1):
        rest = syllables[0]
    elif prefix:  # `[1]` 之后没有逐字时间，是别的东西
        rest = line
    times = [_seconds(stamp) for stamp in _STAMP.findall(leading[0])] if leading else []
    times = list(dict.fromkeys(times))
    words = _WORD_STAMP.sub(_JOINT, rest)
    if _JOINT in words.strip(" \t\0"):
        times = times[:1]  # 逐字的行只唱一次，行首第二个时间是第一个字的
    return _Line(times[0] if times else None, words, tuple(times[1:]))


def _seconds(stamp: str) -> float:
    """时间 → 排序用的秒；负的（整首提前过头）当作 0，次序不变。"""
    numbers = [number.replace(" ", "").replace("\t", "").replace("−", "-") for number in _NUMBERS.findall(stamp)]
    marks = re.findall(r"[:：.．,，;；]", stamp)
    numbers = numbers[: len(marks) + 1]
    if any(number.startswith("-") for number in numbers):
        return 0.0
    values = [float(number) for number in numbers]
    if not any(mark in ":：;；" for mark in marks) and len(marks) == 1:
        return values[0] / 1000 if marks[0] in ",，" else float(f"{numbers[0]}.{numbers[1]}")
    if len(values) == 2:
        return values[0] * 60 + values[1]
    *whole, fraction = values
    seconds = whole[-1] + fraction / 10 ** len(numbers[-1])
    return seconds + 60 * whole[-2] + (3600 * whole[-3] if len(whole) > 2 else 0)


def _in_order(lines: list[_Line], by_word: bool) -> list[_Line]:
    """按时刻排开；没有时间的行跟着前一行。"""
    timed: list[tuple[float, bool, _Line]] = []
    last, blanks = 0.0, 0
    for line in lines:
        if line.time is None and not line.words.strip(" \t\0"):
            blanks += 1
            continue
        last = line.time if line.time is not None else last
        for time in (last, *(() if by_word else line.repeats)):
            timed += [(time, line.time is None, _Line(time, "", stamped=False))] * blanks
            timed.append((time, True, _Line(time, line.words, stamped=line.time is not None)))
        blanks = 0
    return [line for _, _, line in sorted(timed, key=lambda entry: entry[:2])]


_KANA, _HANGUL, _LATIN = (
    re.compile("[\u3041-\u30ff]"),
    re.compile("[\u1100-\u11ff\uac00-\ud7a3]"),
    re.compile("[A-Za-zÀ-ɏ]"),
)
HAN_LETTER = re.compile(f"[{HAN}]")
_CYRILLIC = re.compile("[\u0370-\u052f\u0590-\u06ff\u0e00-\u0e7f]")
_IN_BRACKETS = re.compile(r"^[\s\0]*[(（].*[)）][\s\0]*$")


def _script(words: str) -> str:
    for name, letters in (("kana", _KANA), ("hangul", _HANGUL), ("han", HAN_LETTER), ("other", _CYRILLIC)):
        if letters.search(words):
            return name
    return "latin" if _LATIN.search(words) else ""


def _without_translations(lines: list[_Line]) -> tuple[list[_Line], list[str]]:
    """同一时刻有两三行时，第一行是唱的，别的语言的其余各行不要。返回 (留下的行, 不要的)。"""
    groups: list[list[_Line]] = []
    for line in lines:
        if not line.words.strip(" \t\0") or not line.stamped:
            groups.append([line])
        elif groups and groups[-1][0].time == line.time and groups[-1][0].words.strip(" \t\0"):
            groups[-1].append(line)
        else:
            groups.append([line])
    pairs = [group for group in groups if 1 < len(group) <= 3]
    if not pairs:
        return lines, []
    sung = sum(bool(group[0].words.strip(" \t\0")) and group[0].stamped for group in groups)
    if all((line.time or 0.0).is_integer() for line in lines) and 5 * len(pairs) < 4 * sung:
        return lines, []  # 只写到整秒的，两行撞在一起不说明什么
    for group in pairs:  # 注音写在上面的，唱的是下面的汉字
        if _is_romanised(group[0].words, group[1].words):
            group[0], group[1] = group[1], group[0]
    first = Counter(_script(group[0].words) for group in pairs).most_common(1)[0][0]
    whole: dict[int, bool] = {}  # 每一首的第几行都是译文
    if 2 * len(pairs) >= sung:
        for place in (1, 2):
            scripts = Counter(_script(group[place].words) for group in pairs if len(group) > place)
            whole[place] = bool(scripts) and scripts.most_common(1)[0][0] not in (first, "")
    kept, left_out = [], []
    for group in groups:
        kept.append(group[0])
        for place, line in enumerate(group[1:], 1):
            if 1 < len(group) <= 3:
                foreign = _script(line.words) not in (_script(group[0].words), "")
                if whole.get(place) or (foreign and (place in whole or not _IN_BRACKETS.match(line.words))):
                    left_out.append(line.words)
                    continue
            kept.append(line)
    return kept, left_out


def _is_romanised(above: str, below: str) -> bool:
    """上一行是不是下一行汉字的拼音：全是拉丁字母，词数与字数相当。"""
    words, han = len(re.findall("[A-Za-zÀ-ɏ']+", above)), len(HAN_LETTER.findall(below))
    return _script(above) == "latin" and han > 2 and abs(words - han) <= _ROMANISED * han and above.islower()


_BORDER = re.compile(rf"(?<=[{HAN}])(\s*\0[\s\0]*)(?=[{HAN}])")


def _joined(lines: list[str]) -> list[str]:
    """去掉逐字时间留下的接缝；每个字两边都补了空格的（`<t> 风 <t> 吹`），空格也去掉。"""
    borders = [border for line in lines for border in _BORDER.findall(line)]
    padded = len(borders) >= 3 and sum(border.strip(_JOINT) != "" for border in borders) > 0.8 * len(borders)
    if padded:
        lines = [_BORDER.sub("", line) for line in lines]
    return [line.replace(_JOINT, "") for line in lines]


# ---------------------------------------------------------------------------
# TTML
# ---------------------------------------------------------------------------

_LEFT_OUT = ("x-translation", "x-roman", "x-romanization", "x-transliteration", "translation", "roman")


def _local(name: str) -> str:
    return name.rsplit("}", 1)[-1]


def _read_ttml(text: str) -> Lyric:
    text = re.sub(r"^\s*<\?xml[^>]*\?>", "", text.lstrip("\ufeff"))  # 已经是文字，声明的编码不作数
    try:
        root = ElementTree.fromstring(text.strip().encode("utf-8", "replace"))
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        line, column = getattr(error, "position", (1, 0))
        raise KaraokeError(f"第 {line} 行第 {column + 1} 列不是合法的 XML（{str(error).split(':')[0]}）") from None
    meta: dict[str, list[str]] = {}
    parts: list[str] = []
    for element in root.iter():
        kind = _local(element.tag) if isinstance(element.tag, str) else ""
        if kind == "meta":
            meta.setdefault(element.get("key", "").lower(), []).append(element.get("value", ""))
        elif kind == "title" and element.text:
            meta.setdefault("musicname", []).append(element.text)
        elif kind == "div":
            parts.append("")  # 一个 div 是一段
        elif kind == "p":
            parts.append(_LAYOUT.sub(_laid_out, _span_text(element)).strip())
    name, singers = meta.get("musicname", [""])[0], meta.get("artists", meta.get("artist", []))
    return Lyric("\n".join(parts), name, "/".join(filter(None, singers)))


def _span_text(element: ElementTree.Element) -> str:
    """一行的字；译文、注音不要，和声（x-bg）留在它的括号里。"""
    pieces = [_between(element.text)]
    for child in element:
        attributes = {_local(key): value for key, value in child.attrib.items()}
        kind = _local(child.tag) if isinstance(child.tag, str) else ""
        if kind == "br":
            pieces.append("\n")
        elif (
            kind in ("span", "ruby", "rb")
            and attributes.get("role") not in _LEFT_OUT
            and attributes.get("ruby") != "text"
        ):
            pieces.append(_span_text(child))
        pieces.append(_between(child.tail))
    return "".join(pieces)


_LAYOUT = re.compile(r"(?<=(.))?\x01+(?=(.))?", re.S)


def _laid_out(gap: re.Match[str]) -> str:
    """排版的空白：外文词之间是一个空格，别处没有。"""
    both = (gap[1] or " ") + (gap[2] or " ")
    return " " if both.isascii() and both.isalnum() else ""


def _between(text: str | None) -> str:
    """排版用的换行与缩进不是歌词（先记作 \\x01）；同一行里的空格是。"""
    if not text:
        return ""
    return re.sub(r"\s*\n\s*", "\x01", text)
