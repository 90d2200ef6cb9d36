"""关键词写在哪一行、从第几个字起。"""

from collections.abc import Callable, Sequence

from lyrics.constraint import LineRule
from lyrics.sound import rhyme_class, tones_of
from lyrics.vocabulary import TONE_BITS


def positions(word: str, rule: LineRule, start: int = 0, may_end: bool = True) -> list[int]:
    """word 在照 rule 写的一行里可以从第几个字（从 0 起）写起；放不下的是空的。

    Args:
        start: 这一行已有几个字。
        may_end: 可以落在行末。
    """
    size, tones = len(word), tones_of(word)
    found = []
    for place in range(start, rule.most - size + 1):
        wanted = zip(rule.tones[place : place + size], tones, strict=False)
        fits = all(want == "中" or TONE_BITS[want] == tone for want, tone in wanted)
        fits &= not any(place < at < place + size for at, _ in rule.breaks)
        fits &= bool(place) or not rule.first or word[0] == rule.first
        if place + size == rule.most:
            fits &= may_end and (rule.rhymes is None or rhyme_class(word) in rule.rhymes)
        if fits:
            found.append(place)
    return found


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
