"""一首歌的句式：命令行上的写法 → `Form`。"""

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from lyrics.sound import RHYME_CLASSES, in_word

LONGEST_LINE = 24  # 有句式而没有给行长时，一行最多这么多字

KEYWORD_LINES = 8  # 给了关键词而没有定行数时写几行


class LyricsError(ValueError):
    """句式写法有误，或照它写不出来；消息写明是哪一项。"""


@dataclass(frozen=True)
class FormLine:
    """一行的句式。

    Attributes:
        least, most: 可唱的字数。
        breaks: 各处停顿：（第几个字之后，`-` 或 `，`）；`-` 不写出来，至多是个空格，`，` 写成逗号。
        tones: 每个字一个：平、仄、中（不论）；空为不论。
        rhyme: 韵的字母，同字母同韵；空为不论；带 `?` 的可押可不押。
        mark: 同名的各行一字不差；空为没有。
    """

    least: int
    most: int
    breaks: tuple[tuple[int, str], ...] = ()
    tones: str = ""
    rhyme: str = ""
    mark: str = ""

    @property
    def letter(self) -> str:
        """非押不可的韵的字母；不论的为空。"""
        return "" if self.rhyme.endswith("?") else self.rhyme


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
        pattern: 各行的句式，循环使用；有它就没有 lengths。
        patterned: 韵由 pattern 里的字母定，不看 scheme。
        keywords: 每个词在歌里出现一次。
        example: 样例可唱的字；写出的不许有 `EXAMPLE_SPAN` 个字与它相同。
    """

    lines: int | None = None
    lengths: tuple[tuple[int, int], ...] = ()
    rhyme: str = "none"
    scheme: str = "A"
    acrostic: str = ""
    sections: tuple[tuple[str, int], ...] = ()
    pattern: tuple[FormLine, ...] = ()
    patterned: bool = False
    keywords: tuple[str, ...] = ()
    example: str = ""

    @property
    def given(self) -> bool:
        """有没有任何要求。"""
        return self != Form()

    def line(self, index: int) -> FormLine:
        """第 index 行（从 0 起）的字数、停顿、平仄、标记。"""
        if self.pattern:
            return self.pattern[index % len(self.pattern)]
        least, most = self.lengths[index % len(self.lengths)] if self.lengths else (1, LONGEST_LINE)
        return FormLine(least, most)


EXAMPLE_SPAN = 4  # 与样例连续相同的，到这么多个字就不许


def make_form(
    lines: int | None,
    line_chars: str | None,
    rhyme: str,
    scheme: str | None,
    acrostic: str,
    structure: str | None,
    breaks: str | None = None,
    tones: str | None = None,
    keywords: str | None = None,
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
    lines = _acrostic_lines(acrostic, lines)
    if acrostic and any(count == 0 for _, count in sections):
        raise LyricsError("藏头与重复的段落不能同用：重复的行开头不会变")
    words = parse_keywords(keywords) if keywords else ()
    if words and lines is None:
        lines = KEYWORD_LINES
    check_rhyme(rhyme)
    scheme = scheme.upper() if scheme else None
    if scheme and not re.fullmatch("[A-Z]+", scheme):
        raise LyricsError(f"--rhyme_scheme 应是 AABA 这样的字母，X 为不押：{scheme}")
    if scheme and rhyme == "none":
        rhyme = "auto"
    lengths = _parse_lengths(line_chars) if line_chars else ()
    pattern = _made_pattern(lengths, breaks, tones) if breaks or tones else ()
    lengths = () if pattern else lengths
    return Form(lines, lengths, rhyme, scheme or "A", acrostic, sections, pattern, False, words)


def check_rhyme(rhyme: str) -> None:
    """
    Raises:
        LyricsError: 不是 none、auto 或一个辙名。
    """
    if rhyme not in ("none", "auto", *RHYME_CLASSES):
        near = difflib.get_close_matches(rhyme, RHYME_CLASSES, n=1, cutoff=0.4)
        hint = f"，是否指 {near[0]}？" if near else ""
        raise LyricsError(f"没有韵部 {rhyme}{hint}；可用 auto、none、{'、'.join(RHYME_CLASSES)}")


def _acrostic_lines(acrostic: str, lines: int | None) -> int | None:
    """藏头也定了行数。"""
    if not acrostic:
        return lines
    if not all(character.isalnum() and not in_word(character) for character in acrostic):
        raise LyricsError(f"--acrostic 只能是汉字：{acrostic}")
    lines = len(acrostic) if lines is None else lines
    if lines < len(acrostic):
        raise LyricsError(f"藏头有 {len(acrostic)} 个字，却只写 {lines} 行")
    return lines


def parse_keywords(text: str) -> tuple[str, ...]:
    """逗号或顿号隔开的词；写两遍的就要出现两次。

    Raises:
        LyricsError: 不是汉字。
    """
    words = [word.strip() for word in re.split("[,，、]", text) if word.strip()]
    for word in words:
        if not all(character.isalnum() and not in_word(character) for character in word):
            raise LyricsError(f"--keywords 只能是汉字，几个用逗号隔开：{word}")
    if not words:
        raise LyricsError("--keywords 里没有词：写作 雨,窗台")
    return tuple(words)


def loosened(form: Form) -> Form:
    """平仄放宽：逗号断开的每一截里，只论第二、四、六字与末字。"""
    return dataclasses.replace(form, pattern=tuple(_loosened_line(line) for line in form.pattern))


def _loosened_line(line: FormLine) -> FormLine:
    tones, start = "", 0
    for end in [*(place for place, kind in line.breaks if kind == "，"), len(line.tones)]:
        piece = line.tones[start:end]
        tones += "".join(tone if at in (1, 3, 5, len(piece) - 1) else "中" for at, tone in enumerate(piece))
        start = end
    return dataclasses.replace(line, tones=tones if tones.strip("中") else "")


def parse_shape(text: str) -> FormLine | None:
    """字数与停顿，如 `7`、`5~9`、`2-2-3`、`4，2-3`；写法有误时 None。"""
    if found := re.fullmatch(r"(\d{1,3})[~～](\d{1,3})", text):
        least, most = int(found[1]), int(found[2])
        return FormLine(least, most) if 1 <= least <= most else None
    if not re.fullmatch(r"\d{1,3}(?:[-，]\d{1,3})*", text):
        return None
    pieces = [int(piece) for piece in re.findall(r"\d+", text)]
    ends = list(itertools.accumulate(pieces))
    kinds = re.findall("[-，]", text)
    return FormLine(ends[-1], ends[-1], tuple(zip(ends, kinds, strict=False))) if all(pieces) else None


def _made_pattern(lengths: tuple[tuple[int, int], ...], breaks: str | None, tones: str | None) -> tuple[FormLine, ...]:
    """--line_chars、--breaks、--tones 各自循环，合成各行的句式。"""
    shapes = [parse_shape(part.strip()) for part in breaks.split(",")] if breaks else []
    if None in shapes:
        raise LyricsError(f"--breaks 应是 2-2-3 这样的停顿，几行用半角逗号隔开：{breaks}")
    patterns = [part.strip() for part in re.split("[,，]", tones)] if tones else []
    for part in patterns:
        if not re.fullmatch("[平仄中]+", part):
            raise LyricsError(f"--tones 应是「中平中仄仄平平」这样，每字一个，或 strict、loose：{tones}")
    made = []
    for index in range(math.lcm(*(len(cycle) for cycle in (lengths, shapes, patterns) if cycle))):
        counts = [("--line_chars", *lengths[index % len(lengths)])] if lengths else []
        shape = shapes[index % len(shapes)] if shapes else None
        tone = patterns[index % len(patterns)] if patterns else ""
        counts += [("--breaks", shape.least, shape.most)] if shape else []
        counts += [("--tones", len(tone), len(tone))] if tone else []
        least, most = max(count[1] for count in counts), min(count[2] for count in counts)
        if least > most:
            told = "，".join(f"{name} 是 {a} 字" if a == b else f"{name} 是 {a}-{b} 字" for name, a, b in counts)
            raise LyricsError(f"第 {index + 1} 行的字数对不上：{told}")
        made.append(FormLine(least, most, shape.breaks if shape else (), tone))
    return tuple(made)


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
