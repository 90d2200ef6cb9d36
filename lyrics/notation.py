"""句式的写法：歌里一行写一行，给人看，也给人改。

    主歌 | 2-2-3 | 仄仄平平仄仄平 | A | =hook1

各栏是 段名 | 字数与停顿 | 平仄 | 韵 | 标记，右边空着的不写；空行分节，`#` 之后是注。
"""

import dataclasses
import re
from collections.abc import Sequence

from lyrics.form import Form, FormLine, LyricsError, parse_shape
from lyrics.sound import RHYME_CLASSES

_HALF_WIDTH = str.maketrans("｜－＝？＃", "|-=?#")  # 输入法打出来的全角


def is_notation(text: str) -> bool:
    """是句式而不是歌词：第一行（不算注与空行）里有竖线。"""
    lines = [line for line in (_without_comment(line) for line in text.splitlines()) if line]
    return bool(lines) and "|" in lines[0]


def parse_form(text: str) -> Form:
    """写下的句式 → `Form`；`parse_form(form_text(form)) == form`。

    Raises:
        LyricsError: 写法有误；说明第几行。
    """
    stanzas: list[list[tuple[str, FormLine]]] = [[]]
    numbers: list[int] = []
    for number, raw in enumerate(text.lstrip("\ufeff").splitlines(), 1):
        if not raw.strip():
            stanzas.append([])
        elif content := _without_comment(raw):
            stanzas[-1].append(_parse_line(content, number))
            numbers.append(number)
    stanzas = [stanza for stanza in stanzas if stanza]
    lines = [line for stanza in stanzas for _, line in stanza]
    if not lines:
        raise LyricsError("句式里一行也没有")
    sections, place = [], 0
    for stanza in stanzas:
        for number, (name, _) in zip(numbers[place:], stanza, strict=False):
            if name != stanza[0][0]:
                raise LyricsError(f"句式第 {number} 行：同一节里段名应相同，换一段要空一行")
        sections.append((stanza[0][0], len(stanza)))
        place += len(stanza)
    return pattern_form(_agreeing(lines, numbers), sections)


def pattern_form(lines: Sequence[FormLine], sections: Sequence[tuple[str, int]]) -> Form:
    """各行与各节（段名，行数）→ `Form`。"""
    rhymed = any(line.letter for line in lines)
    return Form(
        lines=len(lines),
        rhyme="auto" if rhymed else "none",
        sections=tuple(sections),
        pattern=tuple(lines),
        patterned=True,
    )


def form_text(form: Form) -> str:
    """`parse_form` 或样例得来的句式 → 写下的文字，末尾有换行。"""
    stanzas, place = [], 0
    for name, count in form.sections:
        lines = form.pattern[place : place + count]
        stanzas.append("".join(_line_text(name, line) + "\n" for line in lines))
        place += count
    return "\n".join(stanzas)


def shape_text(line: FormLine) -> str:
    """字数与停顿的写法：`2-2-3`、`4，2-3`、`7`、`5~9`。"""
    if line.least != line.most:
        return f"{line.least}~{line.most}"
    written, start = "", 0
    for end, kind in line.breaks:
        written += f"{end - start}{kind}"
        start = end
    return f"{written}{line.most - start}"


def _line_text(name: str, line: FormLine) -> str:
    columns = [name, shape_text(line), line.tones, line.rhyme, f"={line.mark}" if line.mark else ""]
    while not columns[-1]:
        columns.pop()
    return " | ".join(columns).strip()


def _without_comment(line: str) -> str:
    return line.translate(_HALF_WIDTH).partition("#")[0].strip()


def _parse_line(content: str, number: int) -> tuple[str, FormLine]:
    """一行 →（段名，句式）。"""

    def wrong(problem: str) -> LyricsError:
        return LyricsError(f"句式第 {number} 行：{problem}")

    name, *columns = (column.strip() for column in content.split("|"))
    if not 1 <= len(columns) <= 4:
        raise wrong("应是「段名 | 字数与停顿 | 平仄 | 韵 | 标记」，右边的可以不写")
    shape, tones, rhyme, mark = (*columns, "", "", "", "")[:4]
    line = parse_shape(shape)
    if line is None:
        raise wrong(f"字数与停顿应是 7、5~9、2-2-3 或 4，2-3 这样：{shape or '空着'}")
    if not re.fullmatch("[平仄中]*", tones):
        raise wrong(f"平仄只用 平、仄、中：{tones}")
    if tones and (line.least != line.most or len(tones) != line.most):
        raise wrong(f"平仄有 {len(tones)} 个字，字数却是 {shape}")
    if not re.fullmatch(r"(?:[A-Za-z]\??)?", rhyme):
        raise wrong(f"韵应是一个字母，可押可不押的带问号：{rhyme}")
    if not re.fullmatch(r"(?:=\s*[^\s=|]+)?", mark):
        raise wrong(f"标记应是 =hook1 这样：{mark}")
    rhyme, mark = rhyme.upper(), mark.removeprefix("=").strip()
    return name, dataclasses.replace(line, tones=tones if tones.strip("中") else "", rhyme=rhyme, mark=mark)


def _agreeing(lines: Sequence[FormLine], numbers: Sequence[int]) -> list[FormLine]:
    """同名的行要的合在一处：字数、停顿相同，平仄都合，韵是同一个。

    Raises:
        LyricsError: 合不到一处，或要押的韵比辙多。
    """
    merged: dict[str, FormLine] = {}
    for line, number in zip(lines, numbers, strict=True):
        first = merged.setdefault(line.mark, line)
        if not line.mark:
            continue
        same = (first.least, first.most, first.breaks) == (line.least, line.most, line.breaks)
        pairs = list(zip(first.tones or line.tones, line.tones or first.tones, strict=False))
        letters = {other.rhyme for other in (first, line) if other.rhyme}
        if not same or {("平", "仄"), ("仄", "平")} & set(pairs) or len(letters) > 1:
            raise LyricsError(f"句式第 {number} 行：与前面同名的 ={line.mark} 字数、平仄或韵不合，没法用同样的词")
        tones = "".join(b if a == "中" else a for a, b in pairs)
        merged[line.mark] = dataclasses.replace(first, tones=tones, rhyme="".join(letters))
    if len({line.letter for line in lines} - {""}) > len(RHYME_CLASSES):
        raise LyricsError(f"句式里的韵多于 {len(RHYME_CLASSES)} 个：一共只有十三辙")
    return [merged[line.mark] if line.mark else line for line in lines]
