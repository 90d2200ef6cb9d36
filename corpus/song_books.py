"""一个 txt 里的一首或许多首：《歌名》各占一行、分隔线、几行空行，结构清楚时才分开。"""

import re
from collections.abc import Sequence
from itertools import groupby, pairwise

from corpus.cleaning import FEWEST_HAN, Song, clean_name
from corpus.karaoke import HAN_LETTER
from corpus.notices import is_part

LONGEST_SONG = 200  # 一首歌超过这么多行，多半是没有分开的许多首


_ORDER = r"(?:第?\s*[\d一二三四五六七八九十百]{1,4}\s*[.、．:：)）首章]?\s*)?"
_BOOK_TITLE = re.compile(
    rf"^[#*【\[（(]*\s*{_ORDER}(?:歌名\s*[:：]\s*)?《([^《》\n]{{1,40}})》\s*"
    r"(?:(?:[-—–/·|]+|(?:演唱|歌手|作者|原唱)\s*[:：])\s*([^\s，。！？,.!?:：]{1,20})|"
    r"[（(]([^）)]{1,20})[）)]|\s+(\w{1,4}))?[\s】\]）)]*$"
)
_NAMED_TITLE = re.compile(
    r"^(?:歌名|歌曲名|标题|曲名|title)\s*[:：]\s*(\S.{0,39}?)(?:\s+(?:歌手|演唱|原唱|artist)\s*[:：]\s*(\S.{0,19}))?$",
    re.I,
)
_LOOSE_TITLE = re.compile(  # 前面空一行的「1. 歌名」「【歌名】」「====歌名====」
    r"^(?:\d{1,3}\s*[.、．)）]\s*(\S[^，。！？]{0,29})|【([^】]{1,30})】|"
    r"[=\-*#~]{3,}\s*([^=\-*#~]{1,30}?)\s*[=\-*#~]{3,})$"
)
_HEADING = re.compile(r"^\s{0,3}#{1,4}\s+(\S.{0,39})$")  # Markdown
_SINGER_LINE = re.compile(r"^\s*(?:演唱|歌手|演唱者|原唱|artist|singer)\s*[:：]\s*(.{1,40})$", re.I)
_RULE = re.compile(r"^\s*(?:([-=*_—─━~～#·.…+])(?:\s?\1){3,})\s*$")


def split_text(text: str) -> list[Song]:
    """一个 txt → 一首或几首：《歌名》各占一行、分隔线、几行空行，结构清楚时才分开。"""
    lines = _single_spaced(text.replace("\r\n", "\n").replace("\r", "\n").split("\n"))
    for split in (_by_titles, _by_rules, _by_blank_lines):
        songs = split(lines)
        if songs:
            return songs
    filled = _filled(lines)
    title = _title_of(filled[0]) if len(filled) > 1 else None
    return [Song("", "", text) if title is None else Song(*title, "\n".join(_without_head(lines)))]


def _single_spaced(lines: list[str]) -> list[str]:
    """多数行间都空着一样多的行，是隔行空的：各处都少空这么多。"""
    places = [place for place, line in enumerate(lines) if line.strip()]
    gaps = [after - place - 1 for place, after in pairwise(places)]
    usual = max(set(gaps), key=gaps.count, default=0)
    if not usual or 2 * gaps.count(usual) <= len(gaps):
        return lines
    spaced = [lines[place : max(place + 1, after - usual)] for place, after in pairwise(places)]
    return [*(line for part in spaced for line in part), lines[places[-1]]]


def _share_lines(songs: Sequence[Sequence[str]]) -> bool:
    """相邻两块里有一样的句子（副歌）：是一首歌的几段，不是几首歌。"""
    sung = [{line.strip() for line in song if _han([line]) >= 4} for song in songs]
    return 2 * sum(not one.isdisjoint(other) for one, other in pairwise(sung)) >= len(sung) - 1


def holds_many_songs(text: str) -> bool:
    """没有分开、而长得不像一首的。"""
    return len(_filled(text.splitlines())) > LONGEST_SONG


def _filled(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if line.strip()]


def _without_head(section: list[str]) -> list[str]:
    """不空的头一行之后的。"""
    return section[section.index(_filled(section)[0]) + 1 :]


def _title_of(line: str, loosely: bool = False) -> tuple[str, str] | None:
    """《歌名》或「歌名：…」独占的一行 → (歌名, 歌手)。loosely：「1. 歌名」「【歌名】」也算。"""
    line = line.strip()
    if not line or len(line) > 80:
        return None
    found = _BOOK_TITLE.match(line)
    if found:
        return clean_name(found[1]), clean_name(found[2] or found[3] or found[4] or "")
    named = _NAMED_TITLE.match(line)
    if named:
        return clean_name(named[1]).strip("《》"), clean_name(named[2] or "")
    heading = _HEADING.match(line) or (_LOOSE_TITLE.match(line) if loosely else None)
    title = next(filter(None, heading.groups()), "") if heading else ""
    if not title or is_part(title) or is_part(f"[{title}]"):  # 「# 副歌」是段落，不是歌名
        return None
    return clean_name(title).strip("《》"), ""


def _han(lines: Sequence[str]) -> int:
    return len(HAN_LETTER.findall("".join(lines)))


def _by_titles(lines: list[str]) -> list[Song]:
    for loosely in (False, True):
        titles = {place: title for place, line in enumerate(lines) if (title := _title_of(line, loosely))}
        places = list(titles)
        if loosely:  # 题目前要空一行
            above = ["", *lines]
            places = [place for place in places if not above[place].strip() or lines[place].strip()[:1] in "=-*#~"]
        if len(places) < 2 or (_han(lines[: places[0]]) > 30 and (loosely or lines[places[0] - 1].strip())):
            continue  # 前面不是空一行隔开的前言，是唱到了书名
        spans = list(pairwise([*places, len(lines)]))
        sung = [_is_first_line(lines[place], titles[place][0], lines[place + 1 : end]) for place, end in spans]
        if 2 * sum(sung) >= len(sung):  # 「1. 今夜我在风里等你」「# 少年唱歌走过四季」是唱词
            continue
        songs = []
        for place, end in spans:
            body = ["" if _RULE.match(line) else line for line in lines[place + 1 : end]]
            songs.append(_with_singer(*titles[place], body))
        whole = [song for song in songs if _han(song.text) >= FEWEST_HAN]
        if loosely and _share_lines([song.text.split("\n") for song in whole]):
            continue
        if len(whole) > 1 and 2 * len(whole) >= len(songs) and len({song.name for song in whole}) == len(whole):
            return [song for song in songs if song.text.strip()]
    return []


def _is_first_line(line: str, title: str, body: Sequence[str]) -> bool:
    """「1. …」「# …」之后的不比下面紧接着的各行短：是一节的头一句，不是题目。"""
    if _BOOK_TITLE.match(line.strip()) or _NAMED_TITLE.match(line.strip()) or not body or not body[0].strip():
        return False
    lengths = sorted(len(part.strip()) for part in _filled(body))
    return len(title) >= lengths[len(lengths) // 2]


def _with_singer(name: str, singer: str, body: list[str]) -> Song:
    """题目之下若有「演唱：甲」一行，就是歌手。"""
    head = next((line for line in body if line.strip()), "")
    found = _SINGER_LINE.match(head)
    if found:
        body = [line for line in body if line is not head]
    return Song(name, singer or (clean_name(found[1]) if found else ""), "\n".join(body))


def _by_rules(lines: list[str]) -> list[Song]:
    parts = [list(part) for ruled, part in groupby(lines, lambda line: bool(_RULE.match(line))) if not ruled]
    sections = [part for part in parts if _filled(part)]
    bare = [section for section in sections if len(_filled(section)) == 1]
    if bare and 2 * len(bare) >= len(sections) - 1 and len(sections) > 2:  # 题目夹在两道线之间
        joined: list[list[str]] = []
        for section in sections:
            if section in bare or not joined or joined[-1][-1] != "":
                joined.append([*section, ""] if section in bare else section)
            else:
                joined[-1] = [*joined[-1], *section]
        sections = joined
    return _sections(sections, True)


def _by_blank_lines(lines: list[str]) -> list[Song]:
    text = "\n".join(line.strip() for line in lines).strip("\n")
    for width in sorted({len(gap) for gap in re.findall(r"\n{3,}", text)})[:4]:  # 至少空两行
        parts = re.split(rf"\n{{{width},}}", text)
        songs = _sections([part.split("\n") for part in parts], len(parts) > 2)
        if songs:
            return songs
    return []


def _sections(sections: list[list[str]], loosely: bool) -> list[Song]:
    """分隔开的各块都像一首歌时，逐块成歌；否则不分。loosely：头一行较短就算题目。"""
    sections = [section for section in sections if _han(section) >= 2]
    if len(sections) < 2:
        return []
    heads = [head for section in sections if (head := _head_of(section, loosely))]
    distinct = len(sections) == len(heads) == len(set(heads))
    if distinct and all(_han(section) >= FEWEST_HAN + 2 for section in sections):
        return [_with_singer(*head, _without_head(section)) for head, section in zip(heads, sections, strict=True)]
    lengths = [len(_filled(section)) for section in sections]
    stanzas = sum("" in "\n".join(section).strip("\n").split("\n") for section in sections)
    if _share_lines(sections):
        return []
    if min(lengths) >= 16 or (min(lengths) >= 8 and 2 * stanzas >= len(sections)):
        return [Song("", "", "\n".join(section)) for section in sections]
    return []


def _head_of(section: list[str], loosely: bool) -> tuple[str, str] | None:
    """一块的头一行像不像歌名：有书名号、编号，下面空一行或是演唱者，或比哪一行都短。"""
    head, *rest = (line.strip() for line in _filled(section))
    if not rest:
        return None
    title = _title_of(head)
    if title:
        return title
    numbered = re.match(r"^(?:第?\s*[\d一二三四五六七八九十百]{1,4}\s*[.、．)）首:：])\s*(\S.{0,39})$", head)
    if numbered:
        return clean_name(numbered[1]), ""
    if len(head) > 20 or re.search(r"[，。！？；,!?;]", head):
        return None
    name, _, singer = re.sub(r"\s+[-–—－]\s+|\s*[-–—－]{1,2}\s*|\s*[/／]\s*", "\0", head, count=1).partition("\0")
    below = _without_head(section)[0].strip()
    lengths = sorted(len(line) for line in rest)
    shortest = loosely and len(head) < lengths[0] and len(head) <= 0.7 * lengths[len(lengths) // 2]
    if not below or _SINGER_LINE.match(below) or re.match(r"^\s*[词詞曲作]", below) or shortest or singer:
        return clean_name(name), clean_name(singer)
    return None
