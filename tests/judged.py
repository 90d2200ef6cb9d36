"""一行合不合规矩，另写一遍的判断；供约束测试用的小词表。"""

import itertools
import re
from collections.abc import Sequence

import pypinyin

from lyrics.constraint import LineConstraint, LineRule, Vocabulary
from lyrics.form import Form, make_form
from lyrics.sound import RHYME_CLASSES

CLASS_OF_FINAL = {final: name for name, finals in RHYME_CLASSES.items() for final in finals.split()}
WORD = r"[^\W_\u2e80-\uff0f\uff5b-\U0010ffff]+"  # 一个外文词或数目


def syllables(line: str) -> list[str]:
    """可唱的字：汉字各一个，外文词整个算一个。"""
    return re.findall(rf"{WORD}|[^\W_]", line)


def is_tidy(line: str) -> bool:
    """字与字之间至多一个空格，行末至多一个标点，此外什么都没有。"""
    return re.fullmatch(r"([^\W_]+( [^\W_]+)*)?[，。、；：！？…—,.;:!?]?", line) is not None


def spaces_stand(line: str, given: int = 0, before_foreign: bool = True) -> bool:
    """空格两边至少各两个字，除非挨着外文词（before_foreign 为假时，除非在外文词之后）；开头给定的不算。"""
    pieces = line.split(" ")
    ends = list(itertools.accumulate(len(piece) + 1 for piece in pieces))
    return all(
        end - 1 < given
        or re.search(rf"{WORD}$", left)
        or (before_foreign and re.match(WORD, right))
        or min(len(syllables(left)), len(syllables(right))) >= 2
        for left, right, end in zip(pieces, pieces[1:], ends, strict=False)
    )


def reading(line: str) -> str | None:
    """末字在这一行里的辙；末字不是汉字时 None。"""
    sung = syllables(line)
    if not sung or re.fullmatch(WORD, sung[-1]):
        return None
    run = re.search(r"[\u2e80-\U0010ffff]+(?=[\W_]*$)", line)[0]
    run = re.sub(r"[\W\d_]+$", "", run)
    if re.search(r"(.)\1地$", run):
        return "梭坡"
    return CLASS_OF_FINAL.get(pypinyin.pinyin(run, style=pypinyin.Style.FINALS)[-1][0])


def rhymes_surely(line: str, wanted: frozenset[str | None]) -> bool:
    """末字的读法都在 wanted 里；只有一辙可押时，读法也只能有一种。小词表里单用时有两读的只有「了」（了了是词）。"""
    found = {"梭坡", "遥条"} if re.search("(?:(?<!了)|了了)了$", "".join(syllables(line))) else {reading(line)}
    return found <= wanted and (len(found) == 1 or None in wanted)


def satisfies(line: str, rule: LineRule, start: str = "") -> bool:
    """一行写完的文字合不合规矩。"""
    tail = line[len(start) :]
    return (
        line.startswith(start)
        and rule.least <= len(syllables(line)) <= rule.most
        and (rule.rhymes is None or rhymes_surely(line, rule.rhymes))
        and (bool(start) or line.startswith(rule.first))
        and len((line + "|").splitlines()) == 1
        and (not rule.tidy or is_tidy(line if not start else re.sub(r"^ ", "", tail)))
        and (not rule.tidy or spaces_stand(line, len(start)))
        and (not rule.tidy or not re.search(r"[^\w] ", line))
    )


def form(
    lines: int | None = None,
    line_chars: str | None = None,
    rhyme: str = "none",
    scheme: str | None = None,
    acrostic: str = "",
    structure: str | None = None,
) -> Form:
    return make_form(lines, line_chars, rhyme, scheme, acrostic, structure)


SINGLES = "花家歌我月夜一你路书海来水飞高好楼走山天人心江光风中了着得地行重睡银觉慢看长亮里们"
CONTROLS = 3  # <unk>、<s>、</s>


def make_vocabulary(pieces: Sequence[str], with_bytes: bool = False) -> Vocabulary:
    """三个控制词元（最后一个是 </s>）、字节、换行，然后各个词元。"""
    token_bytes = [b""] * CONTROLS + [bytes([byte]) for byte in range(256)] * with_bytes
    newline = len(token_bytes)
    return Vocabulary([*token_bytes, b"\n", *(piece.encode() for piece in pieces)], newline, CONTROLS - 1)


def allowed(constraint: LineConstraint) -> list[int]:
    """既没有遮住、细看也不拒绝的词元。"""
    mask = constraint.forbidden()
    return [token for token in range(len(mask)) if not mask[token] and not constraint.refuses(token)]
