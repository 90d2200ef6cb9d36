"""写一行时守的规矩。"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from lyrics.form import LONGEST_LINE
from lyrics.readings import likely_classes, tone_bits
from lyrics.sound import in_word, normalise, sung_count, sung_units
from lyrics.vocabulary import CLOSING, RHYME_BITS, TIDY, TONE_BITS, Shape, Vocabulary, can_spell, decoded, ending_bits
from lyrics.words import LONGEST_WORD, may_pause, one_each

MOST_TOKENS_PER_CHARACTER = 4  # 一个字至多四个字节词元

SPACED = 2  # 有句式的行里，空格两边至少各有这么多个字


@dataclass(frozen=True)
class LineRule:
    """一行的规矩。

    Attributes:
        least, most: 可唱的字数。
        rhymes: 末字可以属于哪些辙，其中 None 指不以汉字收尾；整个为 None 表示不论。
        first: 第一个字；空为不论。
        ends_song: 这一行写完可以收尾（`</s>`）。
        tidy: 句中只有字与单个空格，行末至多一个 `CLOSING` 里的标点；空格两边至少各两个字，或挨着外文词。
        breaks: 停顿：（第几个字之后，`-` 或 `，`）；不落在词中间。
        tones: 每个字一个 平、仄、中；空为不论。
        keyword: （从第几个字起，哪个词）：写在这里。
        avoided: 这一行不许出现的词；`keyword` 自己那一次不算。
        careful: 停顿之前要收在一个认得的词上，见 `may_pause`。
    """

    least: int = 1
    most: int = LONGEST_LINE
    rhymes: frozenset[str | None] | None = None
    first: str = ""
    ends_song: bool = True
    tidy: bool = True
    breaks: tuple[tuple[int, str], ...] = ()
    tones: str = ""
    keyword: tuple[int, str] | None = None
    avoided: tuple[str, ...] = ()
    careful: bool = True

    @property
    def longest(self) -> int:
        """一稿最多几个词元：每个字之后可有一个标点。"""
        return (MOST_TOKENS_PER_CHARACTER + 1) * self.most + 2

    @property
    def shape(self) -> Shape | None:
        """按位置定下的；没有时 None。"""
        if not (self.breaks or self.tones or self.keyword):
            return None
        place, word = self.keyword or (0, "")
        return Shape(self.most, self.breaks, self.tones, tuple(enumerate(word, place)))


ANY_LINE = LineRule(least=0, most=10**6, tidy=False)  # 没有句式：什么样的行都行


class LineConstraint:
    """写一行时守的规矩（`Constraint`）。

    `forbidden` 按表遮住词元：字数会超的、末字不可能入韵的、平仄与停顿对不上的、后面接不下去的；
    `refuses` 再把抽到的词元放进这一行细看：多音字在这里的读法（拿不准的不用）、停顿是否落在词中间、是否照抄。

    末字要押韵时，最后一个字不用字节拼：没拼完不知道它的读音。有句式的行里，字节只拼可唱的字，不拼标点。

    Args:
        start: 这一行已有的文字（提示词的最后一行）。
        copied: 这一行可唱的字、其中末尾几个是新的 → 是否照抄。
        following: 后面已定的几行里可唱的字；这一行与它们相接也不许照抄。
    """

    def __init__(
        self,
        vocabulary: Vocabulary,
        rule: LineRule,
        start: str = "",
        copied: Callable[[str, int], bool] = lambda line, new: False,
        following: str = "",
    ) -> None:
        self.vocabulary, self.rule, self.text = vocabulary, rule, start
        self.copied, self.following = copied, following
        self.count = sung_count(start)
        self._given, self._given_count = len(start), self.count
        self._shape = rule.shape
        self.pending = b""  # 没到齐的字节
        self.song_ended = False
        self._mask = vocabulary.unbreakable

    def forbidden(self) -> np.ndarray:
        vocabulary, rule = self.vocabulary, self.rule
        if self.pending:
            self._mask = self._unfinished_bytes()
            return self._mask
        after_word = bool(self.text) and in_word(self.text[-1])
        added = vocabulary.counts - vocabulary.joins if after_word else vocabulary.counts
        total = self.count + added
        mask = vocabulary.unbreakable | (total > rule.most)
        room = rule.most - self.count - (rule.rhymes is not None)
        mask |= vocabulary.leads & (room < 1)
        last = total == rule.most
        if rule.tidy:
            self._forbid_untidy(mask, total)
            last |= vocabulary.closing & (total >= rule.least)
        if rule.rhymes is not None:
            wanted = sum(RHYME_BITS[name] for name in rule.rhymes)
            mask |= last & (vocabulary.counts > 0) & (vocabulary.rhymes & wanted == 0)
        if rule.first and not self.text:
            mask |= vocabulary.firsts != ord(rule.first)
        if self._shape is not None:
            self._forbid_misplaced(mask, total, after_word)
        whole = rule.least <= self.count <= rule.most and self._in_rhyme(self.text)
        if rule.tidy:
            whole = whole and not self.text.endswith(" ")
            if self.text[self._given :][-1:] in CLOSING and self.count >= rule.least:
                mask[:] = True
            elif (not whole or not self.text) and not self._at_comma():
                mask |= vocabulary.closing & (vocabulary.counts == 0)
        mask[vocabulary.newline_id] = not whole
        mask[vocabulary.eos_id] = not (whole and rule.ends_song)
        self._mask = mask
        return mask

    def begun_well(self) -> bool:
        """开头给定的半行合不合平仄，该有的逗号有没有。"""
        if self._out_of_tone(self.text):
            return False
        before = {sung_count(self.text[:place]) for place, mark in enumerate(self.text) if mark == "，"}
        return all(place in before for place, kind in self.rule.breaks if kind == "，" and place < self.count)

    def _at_comma(self) -> bool:
        return self._shape is not None and self._shape.kind(self.count) == "，" and self.text[-1:] != "，"

    def _forbid_untidy(self, mask: np.ndarray, total: np.ndarray) -> None:
        """就地遮住句式里不该有的标点。"""
        vocabulary, rule = self.vocabulary, self.rule
        closing, untidy = vocabulary.closing & (total < rule.least), vocabulary.untidy
        if rule.breaks:  # 停顿处的逗号，由 `Vocabulary.fits` 定
            closing, untidy = np.zeros_like(closing), untidy & (vocabulary.marks[0] != 2)
        mask |= vocabulary.unsung_leads | untidy | closing
        after_mark = not self.text[-1:].isalnum()
        mask |= vocabulary.spaced[0] & after_mark | vocabulary.spaced[1] & (total == rule.most)

    def _forbid_misplaced(self, mask: np.ndarray, total: np.ndarray, after_word: bool) -> None:
        """就地遮住平仄、停顿、关键词对不上的，和写下就接不下去的词元。"""
        vocabulary, rule, shape = self.vocabulary, self.rule, self._shape
        assert shape is not None
        marked = bool(self.text) and not self.text[-1].isalnum()
        fits = vocabulary.fits(shape, self.count, marked)
        if after_word:  # 接着拼同一个外文词的，从它那个字算起
            fits = np.where(vocabulary.joins, vocabulary.fits(shape, self.count - 1, marked), fits)
        mask |= ~fits
        written = one_each(sung_units(self.text))
        wanted = TONE_BITS.get(rule.tones[self.count : self.count + 1])
        if wanted and not self._asked_for(self.count):
            mask |= vocabulary.out_of_tone(written, wanted)
        if rule.breaks:
            earliest = max(sung_count(self.text[: self._given]), self.count - LONGEST_WORD + 1)
            for place, _ in rule.breaks:
                if earliest <= place <= shape.next_break(self.count):
                    mask |= ~vocabulary.pauses(written, place, shape.sizes(place)[0], rule.careful)
        if rule.least == rule.most:
            onward = np.array(reachable(vocabulary, rule))
            mask |= ~onward[np.minimum(total, rule.most)]
            if rule.rhymes is not None and rule.tones and rule.tones[-1] in TONE_BITS:
                wanted = ending_bits(rule.rhymes, rule.tones[-1])
                mask |= (total == rule.most) & (vocabulary.counts > 0) & (vocabulary.endings & wanted == 0)

    def refuses(self, token: int) -> bool:
        vocabulary = self.vocabulary
        if self._mask[token]:
            return True
        if token in (vocabulary.newline_id, vocabulary.eos_id):
            if self.rule.tidy and self._lonely(self.text, True):
                return True
            return bool(self.following) and self.copied(normalise(self.text) + self.following, len(self.following))
        text = self._completed(token)
        if not text:
            return False
        whole = self.text + text
        if text.splitlines() != [text]:
            return True
        ends = sung_count(whole) >= self.rule.least and text[-1] in CLOSING
        if self.rule.tidy and not (self.rule.breaks or TIDY.fullmatch(whole[self._given :])):
            return True
        if self.rule.tidy and self._lonely(whole, ends):
            return True
        last = sung_count(whole) == self.rule.most or (self.rule.tidy and ends)
        if last and not self._in_rhyme(whole):
            return True
        if (self._shape is not None or self.rule.avoided) and self._misplaced(whole):
            return True
        new = normalise(text)
        return bool(new) and self.copied(normalise(whole), len(new))

    def _lonely(self, line: str, ends: bool) -> bool:
        """有没有空格的一边不足两个字（外文词旁边的不算）；ends：这一行到此为止。"""
        place = line.find(" ", self._given)
        while place >= 0:
            left, right = line[:place], line[place + 1 :]
            if not (in_word(left[-1:] or "a") or in_word(right[:1] or "a") and right):
                after = sung_count(right.partition(" ")[0])
                if sung_count(left.rpartition(" ")[2]) < SPACED:
                    return True
                if after < SPACED and (ends or " " in right or sung_count(left) + SPACED > self.rule.most):
                    return True
            place = line.find(" ", place + 1)
        return False

    def _misplaced(self, line: str) -> bool:
        """平仄照上下文的读法不合，停顿落在词中间，或有不许出现的词。"""
        rule = self.rule
        if rule.tones and self._out_of_tone(line):
            return True
        sung = normalise(line)
        if any(sung.count(word) > (rule.keyword is not None and rule.keyword[1] == word) for word in rule.avoided):
            return True
        if not rule.breaks:
            return False
        units = one_each(sung_units(line))
        for place, _ in rule.breaks:
            if self.count - LONGEST_WORD < place < len(units) and place >= sung_count(line[: self._given]):
                size = self._shape.sizes(place)[0]  # type: ignore[union-attr]
                if not may_pause(units[:place], units[place:], self.vocabulary.words, size, rule.careful):
                    return True
        return False

    def push(self, token: int) -> None:
        if token in (self.vocabulary.newline_id, self.vocabulary.eos_id):
            self.song_ended = token == self.vocabulary.eos_id
            return
        text = self._completed(token)
        self.pending = b"" if text else self.pending + self.vocabulary.bytes[token]
        if text:
            self.text += text
            self.count = sung_count(self.text)

    def _completed(self, token: int) -> str | None:
        return decoded(self.pending + self.vocabulary.bytes[token]) if self.pending else self.vocabulary.texts[token]

    def _asked_for(self, place: int) -> bool:
        """第 place 个字（从 0 起）是人定的：开头、藏头、关键词里的字，有一种读法合就行。"""
        start, word = self.rule.keyword or (0, "")
        opening = place == 0 and bool(self.rule.first)
        return opening or start <= place < start + len(word) or place < self._given_count

    def _out_of_tone(self, line: str) -> bool:
        """有没有字不合平仄，或读音拿不准。"""
        for place, (want, bits) in enumerate(zip(self.rule.tones, tone_bits(line), strict=False)):
            wanted = TONE_BITS.get(want, bits)
            if bits != wanted and not (bits & wanted and self._asked_for(place)):
                return True
        return False

    def _in_rhyme(self, line: str) -> bool:
        wanted = self.rule.rhymes
        if wanted is None:
            return True
        found = likely_classes(line)
        if self._asked_for(sung_count(line) - 1):
            return bool(found & wanted)
        return found <= wanted and (len(found) == 1 or None in wanted)

    def _unfinished_bytes(self) -> np.ndarray:
        """只许接上能拼成字的后续字节。"""
        mask = np.ones(len(self.vocabulary.texts), dtype=bool)
        for token, piece in enumerate(self.vocabulary.bytes):
            if len(piece) == 1 and 0x80 <= piece[0] <= 0xBF:
                mask[token] = not can_spell(self.pending + piece, self.rule.tidy)
        return mask


def reachable(vocabulary: Vocabulary, rule: LineRule) -> tuple[bool, ...]:
    """照 rule（字数定了的）写到第 0 … most 个字时，后面还接不接得下去。"""
    shape = rule.shape or Shape(rule.most)
    if rule.first:
        shape = dataclasses.replace(shape, letters=((0, rule.first), *shape.letters))
    if rule.rhymes is None:
        return vocabulary.reachable(shape, None, None)
    if rule.tones and rule.tones[-1] in TONE_BITS:
        return vocabulary.reachable(shape, ending_bits(rule.rhymes, rule.tones[-1]), None)
    return vocabulary.reachable(shape, None, sum(RHYME_BITS[name] for name in rule.rhymes))
