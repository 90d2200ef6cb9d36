"""关键词写在哪一行、从第几个字起。"""

from collections.abc import Callable, Sequence

from lyrics.constraint import LineRule
from lyrics.readings import likely_classes, tone_bits
from lyrics.vocabulary import TONE_BITS


def positions(word: str, rule: LineRule, start: int = 0, may_end: bool = True) -> list[int]:
    """word 在照 rule 写的一行里可以从第几个字（从 0 起）写起；放不下的是空的。

    先要读音拿得准的；没有一处，有一种读法合的也算：词是人定的。

    Args:
        start: 这一行已有几个字。
        may_end: 可以落在行末。
    """
    places = [
        place
        for place in range(start, rule.most - len(word) + 1)
        if (place or not rule.first or word[0] == rule.first)
        and (may_end or place + len(word) < rule.most)
        and not any(place < at < place + len(word) for at, _ in rule.breaks)
    ]
    sure = [place for place in places if _sounds_right(word, rule, place, sure=True)]
    return sure or [place for place in places if _sounds_right(word, rule, place, sure=False)]


def _sounds_right(word: str, rule: LineRule, place: int, sure: bool) -> bool:
    """word 从第 place 个字写起，平仄与韵合不合；sure：说得过去的读法都要合。"""
    for want, bits in zip(rule.tones[place : place + len(word)], tone_bits(word), strict=False):
        wanted = TONE_BITS.get(want, bits)
        if bits != wanted and (sure or not bits & wanted):
            return False
    if rule.rhymes is None or place + len(word) < rule.most:
        return True
    found = likely_classes(word)
    return found <= rule.rhymes if sure else bool(found & rule.rhymes)


def assigned(words: Sequence[str], lines: Sequence[int], fits: Callable[[str, int], int]) -> dict[int, str] | None:
    """各词分到哪一行，匀着分，一行至多一个；分不下时 None。

    Args:
        lines: 还没写的各行。
        fits: （词，行）→ 0 放不下，1 勉强，2 放得下。
    """
    owner: dict[int, int] = {}
    wishes = []
    for number, word in enumerate(words):
        target = (number + 0.5) / len(words) * len(lines)
        near = sorted(range(len(lines)), key=lambda place, target=target: abs(place + 0.5 - target))  # type: ignore[misc]
        usable = [(fits(word, lines[place]), lines[place]) for place in near]
        wishes.append([line for fit, line in sorted(usable, key=lambda pair: -pair[0]) if fit])

    def settle(number: int, tried: set[int]) -> bool:
        for line in wishes[number]:
            if line not in tried:
                tried.add(line)
                if line not in owner or settle(owner[line], tried):
                    owner[line] = number
                    return True
        return False

    if not all(settle(number, set()) for number in range(len(words))):
        return None
    return {line: words[number] for line, number in owner.items()}
