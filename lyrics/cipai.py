"""词牌：`cipai.txt` 里各个词牌的句式。

文件里一体一段：第一行「《如梦令》 体名 | 又名：忆仙姿 | 出处：…」，体名与后面两栏可以没有，下面是 `notation` 的写法。
"""

import difflib
import functools
import re
from pathlib import Path
from typing import NamedTuple

from lyrics.form import Form, LyricsError
from lyrics.notation import parse_form

CIPAI = Path(__file__).with_name("cipai.txt")

_HEAD = re.compile(r"《([^《》]+)》([^|]*)((?:\|[^|]*)*)")


class Cipai(NamedTuple):
    """一个词牌的一体。"""

    name: str
    label: str
    aliases: tuple[str, ...]
    form: Form


def read_cipai(text: str) -> list[Cipai]:
    """词牌文件 → 各体，次序不变。

    Raises:
        LyricsError: 写法有误；说明哪个词牌、它之下的第几行。
    """
    found = []
    blocks = re.split(r"^(?=《)", "\n" + text, flags=re.MULTILINE)[1:]
    for block in blocks:
        first, _, body = block.partition("\n")
        head = _HEAD.fullmatch(first.strip())
        if head is None:
            raise LyricsError(f"词牌的题目应是「《如梦令》 体名 | 又名：… | 出处：…」：{first.strip()}")
        name, label = head[1].strip(), head[2].strip()
        notes = [note.strip() for note in head[3].split("|")]
        aliases = next((note.removeprefix("又名：").split() for note in notes if note.startswith("又名：")), [])
        try:
            found.append(Cipai(name, label, tuple(aliases), parse_form(body)))
        except LyricsError as error:
            raise LyricsError(f"《{name}》{label}：{error}") from None
    return found


@functools.cache
def all_cipai() -> tuple[Cipai, ...]:
    """随仓库来的全部词牌。"""
    return tuple(read_cipai(CIPAI.read_text(encoding="utf-8")))


def find_cipai(wanted: str) -> Cipai:
    """按名称或又名找；同名的几体里，「临江仙2」是第二体。

    Raises:
        LyricsError: 没有；说最相近的一个。
    """
    name, number = re.fullmatch(r"《?(.*?)》?\s*(\d*)", wanted.strip()).groups()  # type: ignore[union-attr]
    every = all_cipai()
    forms = [one for one in every if one.name == name] or [one for one in every if name in one.aliases]
    if not forms:
        names = [other for one in every for other in (one.name, *one.aliases)]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.3)
        raise LyricsError(f"没有词牌 {name}" + (f"，是否指 {near[0]}？" if near else "；/cipai 列出全部"))
    if not 1 <= int(number or 1) <= len(forms):
        raise LyricsError(f"{forms[0].name} 只有 {len(forms)} 体，没有第 {number} 体")
    return forms[int(number or 1) - 1]


def cipai_list() -> str:
    """全部词牌，一行一个：名称、又名、各体与字数。"""
    lines = []
    for name in dict.fromkeys(one.name for one in all_cipai()):
        forms = [one for one in all_cipai() if one.name == name]
        totals = "、".join(f"{one.label or '一体'} {sum(line.most for line in one.form.pattern)} 字" for one in forms)
        also = f"（{'、'.join(forms[0].aliases)}）" if forms[0].aliases else ""
        lines.append(f"{name}{also}：{totals}")
    return "\n".join(lines)
