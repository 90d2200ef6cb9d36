"""一首歌从哪里分节。"""

import re
from collections.abc import Sequence
from itertools import combinations, pairwise

SHORTEST_STANZA = 2  # 平均每节至少这么多行，才是分节；不到的是行间都空了一行
SHORTEST_REPEAT = 3  # 一字不差再唱一遍的，至少这么多行才认作一段
LONGEST_HEAD = 2  # 开头至多这么多行（题目、歌手）之下的空行不算分节
MOST_LINES = 400  # 比这还长的不像一首歌，不找重复的段落

_WORD = re.compile(r"[^\W_]")


def with_stanzas(lines: Sequence[str]) -> list[str]:
    """各行（没有字的算空行）→ 一行行的歌词，节与节之间一个空行，首尾没有。

    原文隔行都空着的，空得更多的地方才是分节；没有空行的，重复的段落就是一节。
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
    starts = _wide_gaps(gaps, sung)
    head = max(starts, default=0)
    if head <= LONGEST_HEAD:  # 只在题目、歌手之下空了一行，等于没有分节
        starts |= {head + place for place in _repeated_blocks(sung[head:])}
    return [part for place, line in enumerate(sung) for part in (("", line) if place in starts else (line,))]


def _wide_gaps(gaps: Sequence[int], sung: Sequence[str]) -> set[int]:
    """分节的空行：取最窄的一种空法，使每节平均有 `SHORTEST_STANZA` 行。"""
    for width in sorted(set(gaps[1:]) - {0}):
        starts = {place for place, gap in enumerate(gaps) if place and gap >= width}
        edges = [0, *sorted(starts), len(gaps)]
        alone = [sung[start] for start, end in pairwise(edges) if end - start == 1]
        refrain = 2 * len(alone) < len(edges) and 2 * len(set(alone)) <= len(alone)  # 自成一节的是反复唱的一句
        if len(gaps) >= SHORTEST_STANZA * (len(edges) - 1) or (alone and refrain):
            return starts
    return set()


def _alike(one: str, other: str) -> bool:
    """改了几个字的同一句：首尾相同的字有一半，或一样长而末两字相同。"""
    least = min(len(one), len(other))
    head = next((n for n in range(least) if one[n] != other[n]), least)
    tail = next((n for n in range(least - head) if one[-1 - n] != other[-1 - n]), least - head)
    return 2 * (head + tail) >= max(len(one), len(other)) or (len(one) == len(other) and tail > 1)


def _repeated_blocks(lines: Sequence[str]) -> set[int]:
    """重复的段落从哪一行起，到哪一行之前止（不含首尾）；不留只有一行的节。"""
    pairs = _pairs_of_blocks(lines)
    longest: dict[int, int] = {}
    for one, other, length in pairs:
        for start in (one, other):
            longest[start] = max(longest.get(start, 0), length)
    starts = sorted(longest)
    after = dict(zip(starts, [*starts[1:], len(lines)], strict=False))
    for one, other, _ in pairs:  # 有一遍唱全了，别的几遍末句改了词也是这么长
        length = max(longest[one], longest[other])
        for start in (one, other):
            longest[start] = max(longest[start], min(length, after[start] - start))
    kept = {0, len(lines)}
    for edge in [*starts, *(start + longest[start] for start in starts)]:  # 起处比止处可靠
        if all(abs(edge - other) >= SHORTEST_STANZA for other in kept):
            kept.add(edge)
    return kept - {0, len(lines)}


def _pairs_of_blocks(lines: Sequence[str]) -> list[tuple[int, int, int]]:
    """[(前一遍从哪行起, 后一遍, 行数)]：一字不差的至少 `SHORTEST_REPEAT` 行，连同前后改了几个字的。"""
    if len(set(lines)) > len(lines) - SHORTEST_REPEAT or len(lines) > MOST_LINES:
        return []
    places: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        places.setdefault(line, []).append(place)
    pairs = []
    for first, second in (pair for same in places.values() for pair in combinations(same, 2)):
        if first and lines[first - 1] == lines[second - 1]:
            continue  # 在更长的一段里
        length, room = 1, second - first
        while second + length < len(lines) and lines[first + length] == lines[second + length]:
            length += 1
        if not SHORTEST_REPEAT <= length <= room:
            continue
        while first and length < room and _alike(lines[first - 1], lines[second - 1]):
            first, second, length = first - 1, second - 1, length + 1
        while second + length < len(lines) and length < room and _alike(lines[first + length], lines[second + length]):
            length += 1
        if first == 1 and length < room:  # 歌的头一行不单是一节
            first, second, length = 0, second - 1, length + 1
        pairs.append((first, second, length))
    return pairs
