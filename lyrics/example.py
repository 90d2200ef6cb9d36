"""从一首歌读出它的句式：各节、字数、停顿、韵、回来的词，要的话还有平仄。"""

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence

from lyrics.form import Form, FormLine, LyricsError
from lyrics.notation import pattern_form
from lyrics.sound import LEVEL, OBLIQUE, in_word, normalise, rhyme_class, sung_count, sung_units, tones_of

NEAR = 4  # 隔不到这么多行的两个韵脚算押韵

_TIME_TAG = re.compile(r"\[(?:\d+:\d+(?:[.:]\d+)?|[a-z]+:[^\]\n]*)\]")  # LRC 的时间与歌名一类

_INNER_MARK = re.compile(r"[^\w]+|_+")


def read_form(text: str, keep_tones: bool = False) -> Form:
    """歌词 → 句式；`example` 是它可唱的字。

    空行分节。整节重来的一节、回来的一行，都是同名的标记。行中的空格是停顿，行中的标点是写出来的停顿（逗号）。
    韵脚同辙、相隔不远的算一个韵，字母照出现的先后；不与别的押的一行就空着。

    Raises:
        LyricsError: 没有一行可唱的。
    """
    text = _TIME_TAG.sub("", text)
    stanzas = [
        [line.strip() for line in stanza.split("\n") if sung_count(line)]
        for stanza in re.split(r"\n[^\S\n]*\n", text.lstrip("\ufeff").replace("\r", ""))
    ]
    stanzas = [stanza for stanza in stanzas if stanza]
    if not stanzas:
        raise LyricsError("样例里没有一行歌词")
    sung = [[" ".join(sung_units(line)) for line in stanza] for stanza in stanzas]
    marks, letters = _marks(sung), _letters(stanzas)
    first: dict[str, FormLine] = {}
    lines = []
    for line, words, letter in zip(_flat(stanzas), _flat(sung), letters, strict=True):
        read = dataclasses.replace(_read_line(line, keep_tones), rhyme=letter, mark=marks.get(words, ""))
        lines.append(first.setdefault(words, read) if read.mark else read)
    sections = zip(_section_names(sung), map(len, stanzas), strict=True)
    return dataclasses.replace(pattern_form(lines, list(sections)), example=normalise(text))


def _flat(stanzas: Sequence[Sequence[str]]) -> list[str]:
    return [line for stanza in stanzas for line in stanza]


def _read_line(line: str, keep_tones: bool) -> FormLine:
    """一行的字数、停顿与平仄。"""
    count, breaks = sung_count(line), []
    for found in _INNER_MARK.finditer(line):
        place = sung_count(line[: found.start()])
        between_words = in_word(line[found.start() - 1]) and in_word(line[found.end() :][:1] or "a")
        if 0 < place < count and not between_words:
            mark = found[0].strip()
            breaks.append((place, "，" if mark and mark != "、" else "-"))
    tones = "".join(_tone(unit, tone) for unit, tone in zip(sung_units(line), tones_of(line), strict=True))
    return FormLine(count, count, tuple(breaks), tones if keep_tones and tones.strip("中") else "")


def _tone(unit: str, tone: int) -> str:
    return "中" if in_word(unit[0]) else {LEVEL: "平", OBLIQUE: "仄"}.get(tone, "中")


def _marks(stanzas: Sequence[Sequence[str]]) -> dict[str, str]:
    """出现不止一次的一行 → 它的标记。"""
    counts = Counter(_flat(stanzas))
    returning = [line for line, count in counts.items() if count > 1]
    return {line: f"hook{number}" for number, line in enumerate(returning, 1)}


def _letters(stanzas: Sequence[Sequence[str]]) -> list[str]:
    """每一行的韵的字母，不押的为空。

    一节之内隔不到 `NEAR` 行、又不是同一行字的两个韵脚同辙，这一辙就是一个韵；这一辙的每一行都归它。
    """
    groups: dict[str, str] = {}
    for stanza in stanzas:
        classes = [rhyme_class(line) for line in stanza]
        for place, (line, name) in enumerate(zip(stanza, classes, strict=True)):
            near = zip(stanza[max(0, place - NEAR) : place], classes[max(0, place - NEAR) : place], strict=True)
            if name and any(name == other and normalise(line) != normalise(before) for before, other in near):
                groups.setdefault(name, "")
    classes = [rhyme_class(line) for line in _flat(stanzas)]
    for name in dict.fromkeys(name for name in classes if name in groups):
        groups[name] = chr(ord("A") + sum(bool(letter) for letter in groups.values()))
    return [groups.get(name or "", "") for name in classes]


def _section_names(stanzas: Sequence[Sequence[str]]) -> list[str]:
    """有重来的节的是副歌，其余是主歌；只有一节的没有名字。"""
    if len(stanzas) == 1:
        return [""]
    counts = Counter(_flat(stanzas))
    choruses = [sum(counts[line] > 1 for line in stanza) * 2 >= len(stanza) for stanza in stanzas]
    return ["副歌" if chorus else "主歌" for chorus in choruses]
