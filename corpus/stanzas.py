"""一首歌从哪里分节。"""

import re
from collections.abc import Sequence
from itertools import pairwise

SHORTEST_STANZA = 2  # 平均每节至少这么多行，才是分节；不到的是行间都空了一行
SHORTEST_REPEAT = 3  # 一字不差再唱一遍的，至少这么多行才认作一段
MOST_LINES = 400  # 比这还长的不像一首歌，不找重复的段落

_WORD = re.compile(r"[^\W_]")


def with_stanzas(lines: Sequence[str]) -> list[str]:
    """各行（没有字的算空行）→ 一行行的歌词，节与节之间一个空行，首尾没有。

    原文隔行都空着的，空得更多的地方才是分节；没有空行的，一字不差重复的段落就是一节。
    """
    sung: list[str] = []
    gaps: list[int] = []  # 第 i 行之前空了几行
    gap = 0
    for line in lines:
        if _WORD.search(line):
            sung.append(line)
            gaps.append(gap)
            gap = 0
        else:
            gap += 1
    starts = _wide_gaps(gaps) or _repeated_blocks(sung)
    return [part for place, line in enumerate(sung) for part in (("", line) if place in starts else (line,))]


def _wide_gaps(gaps: Sequence[int]) -> set[int]:
    """分节的空行：取最窄的一种空法，使每节平均有 `SHORTEST_STANZA` 行。"""
    for width in sorted(set(gaps[1:]) - {0}):
        starts = {place for place, gap in enumerate(gaps) if place and gap >= width}
        if len(gaps) >= SHORTEST_STANZA * (len(starts) + 1):
            return starts
    return set()


def _repeated_blocks(lines: Sequence[str]) -> set[int]:
    """重复的段落从哪一行起，到哪一行之前止；不留只有一行的节。"""
    if len(set(lines)) > len(lines) - SHORTEST_REPEAT or len(lines) > MOST_LINES:
        return set()
    places: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        places.setdefault(line, []).append(place)
    edges = {0, len(lines)}
    for same in places.values():
        for number, first in enumerate(same):
            for second in same[number + 1 :]:
                if first and lines[first - 1] == lines[second - 1]:
                    continue  # 在更长的一段里
                length = 1
                while second + length < len(lines) and lines[first + length] == lines[second + length]:
                    length += 1
                if SHORTEST_REPEAT <= length <= second - first:
                    edges |= {first, first + length, second, second + length}
    if len(edges) == 2:
        return set()
    kept = [0]
    for edge in sorted(edges)[1:]:
        if edge - kept[-1] >= SHORTEST_STANZA:
            kept.append(edge)
    if kept[-1] != len(lines):  # 末尾剩一行，并入前一节
        kept[-1] = len(lines)
    return {start for start, _ in pairwise(kept) if start}
