"""一首歌的句式：命令行上的写法 → `Form`。"""

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lyrics.sound import RHYME_CLASSES, in_word


class LyricsError(ValueError):
    """句式写法有误，或照它写不出来；消息写明是哪一项。"""


@dataclass(frozen=True)
class Form:
    """整首歌的句式。

    Attributes:
        lines: 几行；None 由模型收尾。
        lengths: 各行的（最少，最多）字数，循环使用；空为不限。
        rhyme: `none`、`auto` 或一个辙名。
        scheme: 韵式，循环使用：同一个字母押同一个韵，只出现一次的字母与 X 不押，但只出现一次的不与别的字母同韵。
        acrostic: 第 i 行以第 i 个字开头。
        sections: （名称，行数）；行数为 0 的是前面同名一段的重复。
    """

    lines: int | None = None
    lengths: tuple[tuple[int, int], ...] = ()
    rhyme: str = "none"
    scheme: str = "A"
    acrostic: str = ""
    sections: tuple[tuple[str, int], ...] = ()

    @property
    def given(self) -> bool:
        """有没有任何要求。"""
        return self != Form()


def make_form(
    lines: int | None, line_chars: str | None, rhyme: str, scheme: str | None, acrostic: str, structure: str | None
) -> Form:
    """命令行上的写法 → `Form`。

    Raises:
        LyricsError: 写法有误，或几项互相矛盾。
    """
    sections = _parse_structure(structure) if structure else ()
    total = sum(count for _, count in _laid_out(sections))
    if sections and lines is not None and lines != total:
        raise LyricsError(f"--structure 一共 {total} 行，与 --lines {lines} 不符")
    lines = total if sections else lines
    if acrostic:
        if not all(character.isalnum() and not in_word(character) for character in acrostic):
            raise LyricsError(f"--acrostic 只能是汉字：{acrostic}")
        lines = len(acrostic) if lines is None else lines
        if lines < len(acrostic):
            raise LyricsError(f"藏头有 {len(acrostic)} 个字，却只写 {lines} 行")
        if any(count == 0 for _, count in sections):
            raise LyricsError("藏头与重复的段落不能同用：重复的行开头不会变")
    if rhyme not in ("none", "auto", *RHYME_CLASSES):
        near = difflib.get_close_matches(rhyme, RHYME_CLASSES, n=1, cutoff=0.4)
        hint = f"，是否指 {near[0]}？" if near else ""
        raise LyricsError(f"没有韵部 {rhyme}{hint}；可用 auto、none、{'、'.join(RHYME_CLASSES)}")
    scheme = scheme.upper() if scheme else None
    if scheme and not re.fullmatch("[A-Z]+", scheme):
        raise LyricsError(f"--rhyme_scheme 应是 AABA 这样的字母，X 为不押：{scheme}")
    if scheme and rhyme == "none":
        rhyme = "auto"
    return Form(lines, _parse_lengths(line_chars) if line_chars else (), rhyme, scheme or "A", acrostic, sections)


def _parse_lengths(text: str) -> tuple[tuple[int, int], ...]:
    lengths = []
    for part in re.split("[,，]", text):
        found = re.fullmatch(r"\s*(\d{1,3})\s*(?:[-–~～]\s*(\d{1,3})\s*)?", part)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise LyricsError(f"--line_chars 应是 7、5-9 或 7,7,5,7 这样的字数：{text}")
        lengths.append((least, most))
    return tuple(lengths)


def _parse_structure(text: str) -> tuple[tuple[str, int], ...]:
    sections: list[tuple[str, int]] = []
    for part in text.split():
        found = re.fullmatch(r"(\D+?)(\d{0,3})", part)
        if found is None or found[2] == "0" * len(found[2]) != "":
            raise LyricsError(f"--structure 应是「主歌4 副歌4 主歌4 副歌」这样：段名加行数，不写行数的是重复：{part}")
        count = int(found[2] or 0)
        if count == 0 and found[1] not in [name for name, number in sections if number]:
            raise LyricsError(f"--structure 里第一次出现的 {part} 要写行数，例如 {part}4")
        sections.append((found[1], count))
    return tuple(sections)


def _laid_out(sections: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """重复的段落补上行数。"""
    counts: dict[str, int] = {}
    laid_out = []
    for name, count in sections:
        counts[name] = count or counts[name]
        laid_out.append((name, counts[name]))
    return laid_out
