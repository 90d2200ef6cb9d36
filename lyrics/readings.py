"""拿不准的读音：要平仄、要押韵的地方，一个字说得过去的读法都合才用它。"""

import functools
import re

from lyrics.sound import (
    LEVEL,
    OBLIQUE,
    class_as_written,
    possible_classes,
    rhyme_class,
    simpler,
    sung_units,
    tones_as_written,
    tones_of,
)
from lyrics.words import LONGEST_WORD, one_each, phrases

# 单用时有平有仄的字；在认得的词里（长江、难民），由词定
_UNSURE_TONES = re.compile(
    "[长为重干教曲调弹兴觉没得着著发应场号强宁量塞冠差扇称占禁切铺供缝悄予挑咽担晕钻帖划丧翘哄荫靡炸脏创吁谩煞旋盛背]"
    "|(?<=[一二两三四五六七八九十百千万几数这那每残深初])[只更]"
)

# 单用时不止一辙的字；落、色、石、地这些单用时只有一读
_UNSURE_RHYMES = frozenset("了着著还行得的乐觉没都称强劲塞差咽薄吓率")

_ADVERB = re.compile(r"(.)\1地[\W_]*$")  # 慢慢地

_LEVEL_MARK = frozenset("āáēéīíōóūúǖǘḿế")

# 「一、不」变调：唱的是本调，词组里注的有时是变调
_OWN_TONES = {"一": LEVEL, "不": OBLIQUE}


def _spans(text: str) -> list[tuple[int, int]]:
    """认得的词在 text 里的（从第几个字，到第几个字）。"""
    known, spans = phrases(), []
    for start in range(len(text) - 1):
        for end in range(start + 2, min(start + LONGEST_WORD, len(text)) + 1):
            if text[start:end] in known:
                spans.append((start, end))
    return spans


@functools.lru_cache(maxsize=65536)
def tone_bits(line: str) -> tuple[int, ...]:
    """每个可唱的字说得过去的平仄（按位）：拿得准的只有一位；外文词与没有读音的字是 0。

    算上的读法：照上下文的（繁简两样写法），跨着它的每个词里的，逗号两边连着读的；不在词里的多音字，平仄都算。
    """
    found = list(tones_of(line))
    written = one_each(sung_units(line))  # 一字一个字符，没有标点
    text = simpler(written)
    if text != line:  # 有标点，或有繁体
        for run in re.finditer("[^ ]+", written):
            for place, tone in enumerate(tones_as_written(run[0]), run.start()):
                found[place] |= tone
    paused = {len(sung_units(line[: mark.start()])) for mark in re.finditer(r"[\W_]+", line)}
    settled = [False] * len(text)
    for start, end in _spans(text):
        whole = not any(start < place < end for place in paused)
        for place, tone in enumerate(tones_of(text[start:end]), start):
            found[place] |= tone
            settled[place] |= whole
    for place, character in enumerate(text):
        found[place] |= _OWN_TONES.get(character, 0)
    for unsure in _UNSURE_TONES.finditer(text):
        if not settled[unsure.start()]:
            found[unsure.start()] = LEVEL | OBLIQUE
    return tuple(found)


@functools.cache
def _tones_in_words() -> dict[str, int]:
    """每个字在注音的词组里有过的平仄，按位。"""
    from pypinyin.phrases_dict import phrases_dict

    found: dict[str, int] = {}
    for word, syllables in phrases_dict.items():
        for character, (syllable, *_) in zip(word, syllables, strict=False):
            found[character] = found.get(character, 0) | (OBLIQUE if _LEVEL_MARK.isdisjoint(syllable) else LEVEL)
    return found


@functools.lru_cache(maxsize=65536)
def possible_tones(character: str) -> int:
    """一个字在哪一行里也不出这几样平仄（按位），`tone_bits` 给的都在其中；字典里有而没有词这样读的（春、是）不算。"""
    forms = (character, simpler(character))
    if _UNSURE_TONES.search(forms[1]) or forms[1] in "只更":
        return LEVEL | OBLIQUE
    found = _OWN_TONES.get(character, 0)
    for form in forms:
        found |= sum(tones_of(form)) | sum(tones_as_written(form)) | _tones_in_words().get(form, 0)
    return found


@functools.lru_cache(maxsize=65536)
def likely_classes(line: str) -> frozenset[str | None]:
    """末字说得过去的读法所属的辙，拿得准的只有一个；不以汉字收尾的是 {None}。"""
    name = rhyme_class(line)
    if name is None or _ADVERB.search(line):
        return frozenset({name})
    run = one_each(sung_units(re.findall(r"[^\W_]+", line)[-1])).rpartition(" ")[2]
    text = simpler(run)
    found = {name, class_as_written(run)}
    words = [text[start:end] for start, end in _spans(text) if end == len(text)]
    found |= {rhyme_class(word) for word in words}
    if not words and text[-1] in _UNSURE_RHYMES:
        found |= possible_classes(text[-1])
    return frozenset(found)
