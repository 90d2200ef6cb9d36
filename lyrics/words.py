"""词与词的界线：一行里的停顿不落在词的中间。"""

import functools
from collections.abc import Collection

from lyrics.sound import in_word

LONGEST_WORD = 4  # 更长的词不论

# 停顿之后的第一个字：多半附在前一个字上（看着、桌上、三颗、孩子）
LEANS_BACK = frozenset(
    "着了过到得成出进起下里上边底中旁个们的地之者来去完子头儿时处间次种张条根只件本句杯瓶碗口片颗粒岁点分秒座块"
)

# 停顿之前的最后一个字：多半附在后一个字上（一颗、那张、老周、没到）
LEANS_FORWARD = frozenset("一二两三四五六七八九十百千万几半这那哪每第老小阿没不最很更太再又也都还就才只全满各某")

# 自己就能收住一截的字
ENDS_A_WORD = frozenset("的了着过")

# 一个字的一截：领字与代词
STANDS_ALONE = frozenset(
    "我你他她它谁是在和与被把让给向从对为却已将再若都就还也那这正望看念想记叹恨怕更又便但似渐任料待纵且自使怎试听问应愿愁惊忆总算甚"
)


@functools.cache
def phrases() -> frozenset[str]:
    """pypinyin 注音用的词组里两到四个字的：装了它就有的词表。"""
    from pypinyin.phrases_dict import phrases_dict

    return frozenset(word for word in phrases_dict if 2 <= len(word) <= LONGEST_WORD)


def ends_word(before: str, size: int = 0) -> bool:
    """before 的末尾是一个认得的词：`phrases` 里的，词表里常连着写的字不算。

    Args:
        size: 末尾一截几个字；只有一个字的，是 `STANDS_ALONE` 里的才行。
    """
    if size == 1:
        return before[-1:] in STANDS_ALONE
    if before[-1:] in LEANS_FORWARD:
        return False
    sizes = range(2, min(len(before), LONGEST_WORD) + 1)
    return before[-1:] in ENDS_A_WORD or any(before[-size:] in phrases() for size in sizes)


def may_pause(before: str, after: str, words: Collection[str], size: int, careful: bool = True) -> bool:
    """before 与 after 之间能不能停：没有 words 里的词跨在上面；careful 时前一截还要收在一个认得的词上。

    只看有没有词跨着还不够：词表里没有的词多，认不得的字多半是半个词（实测见 docs/log.md）。

    Args:
        before, after: 停顿前后的字，一字一个字符，外文词换成空格。
        size: 停顿前一截几个字。
    """
    if not before or not after or " " in (before[-1], after[0]):
        return True
    for left in range(1, min(len(before), LONGEST_WORD) + 1):
        for right in range(1, min(len(after), LONGEST_WORD - left) + 1):
            if before[-left:] + after[:right] in words:
                return False
    return not careful or (after[0] not in LEANS_BACK and ends_word(before, size))


def one_each(units: Collection[str]) -> str:
    """可唱的字连成一串，外文词换成空格：第几个字符就是第几个字。"""
    return "".join(" " if in_word(unit[0]) else unit for unit in units)
