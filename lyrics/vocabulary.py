"""词表里的每个词元在句式里算什么。"""

import functools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lyrics.form import Form, LyricsError
from lyrics.readings import possible_tones, tone_bits
from lyrics.sound import (
    LEVEL,
    OBLIQUE,
    RHYME_CLASSES,
    in_word,
    possible_classes,
    possible_endings,
    rhyme_class,
    simpler,
    sung_count,
    sung_units,
)
from lyrics.words import (
    LEANS_BACK,
    LEANS_FORWARD,
    LONGEST_WORD,
    STANDS_ALONE,
    ends_word,
    one_each,
    phrases,
)

CLOSING = frozenset("，。、；：！？…—,.;:!?")  # 有句式的行末可有一个；句中只许空格。括号、引号多是戏里的科白，不用

_CLOSING = f"[{''.join(sorted(CLOSING))}]"

TIDY = re.compile(rf" ?(?:[^\W_]+(?: [^\W_]+)*(?: |{_CLOSING})?)?|{_CLOSING}")

RHYME_BITS = {name: 1 << place for place, name in enumerate(RHYME_CLASSES)} | {None: 1 << len(RHYME_CLASSES)}

TONE_BITS = {"平": LEVEL, "仄": OBLIQUE}

_ENDING_BITS: dict[tuple[str | None, int], int] = {
    (name, tone): 1 << (2 * place + tone - 1) for place, name in enumerate(RHYME_CLASSES) for tone in (LEVEL, OBLIQUE)
}

_WIDEST = 8  # 一个词元里至多细看这么多个字；更长的在有停顿、平仄、关键词的行里不用


@dataclass(frozen=True)
class Shape:
    """一行里按位置定下的：停顿、平仄、关键词。

    Attributes:
        length: 几个字；关键词的行字数不定时是最多几个。
        breaks: （第几个字之后，`-` 或 `，`）。
        tones: 每字一个 平、仄、中；空为不论。
        letters: （第几个字，从 0 起；哪个字）。
    """

    length: int
    breaks: tuple[tuple[int, str], ...] = ()
    tones: str = ""
    letters: tuple[tuple[int, str], ...] = ()

    def next_break(self, count: int) -> int:
        """写了 count 个字之后的下一处停顿，或行末。"""
        return next((place for place, _ in self.breaks if place > count), self.length)

    def kind(self, count: int) -> str:
        """写了 count 个字的地方停不停：`-`、`，` 或空。"""
        return dict(self.breaks).get(count, "")

    def sizes(self, place: int) -> tuple[int, int]:
        """第 place 个字之后的停顿，前后两截各几个字。"""
        before = max((other for other, _ in self.breaks if other < place), default=0)
        return place - before, self.next_break(place) - place

    def may_space(self, count: int) -> bool:
        """这处停顿可以写成空格：两边都至少两个字。"""
        return self.kind(count) == "-" and min(self.sizes(count)) >= 2


class Vocabulary:
    """每个词元写出的文字在句式里算什么。

    Args:
        token_bytes: 每个词元的 UTF-8 字节，控制词元为空；256 个单字节词元中 0x80 以上的拼成一个字才有意义。
        newline_id, eos_id: 换行与 `</s>`。
    """

    def __init__(self, token_bytes: Sequence[bytes], newline_id: int, eos_id: int) -> None:
        self.newline_id, self.eos_id = newline_id, eos_id
        self.texts = [decoded(piece) for piece in token_bytes]
        self.bytes = list(token_bytes)
        size = len(self.texts)
        self.counts = np.zeros(size, dtype=np.int32)  # 可唱的字数
        self.joins = np.zeros(size, dtype=bool)  # 开头的字母会并进前面的外文词
        self.firsts = np.zeros(size, dtype=np.int32)  # 第一个字的码位
        self.unbreakable = np.zeros(size, dtype=bool)  # 行中不许出现：换行、控制词元、不成字的字节
        self.leads = np.zeros(size, dtype=bool)  # 多字节字的首字节
        self.untidy = np.zeros(size, dtype=bool)  # 不论接在哪里都不合 `LineRule.tidy`
        self.closing = np.zeros(size, dtype=bool)  # 以行末的标点结尾
        self.spaced = np.zeros((2, size), dtype=bool)  # 以空格开头、结尾
        for token, text in enumerate(self.texts):
            if text:
                self.counts[token] = sung_count(text)
                self.joins[token] = in_word(text[0])
                self.firsts[token] = ord(text[0])
                self.unbreakable[token] = text.splitlines() != [text]
                self.untidy[token] = not TIDY.fullmatch(text)
                self.closing[token] = text[-1] in CLOSING
                self.spaced[:, token] = text[0] == " ", text[-1] == " "
            else:
                piece = self.bytes[token]
                self.leads[token] = len(piece) == 1 and 0xC2 <= piece[0] <= 0xF4
                self.unbreakable[token] = not self.leads[token]
        self.characters = {text: token for token, text in enumerate(self.texts) if text and len(text) == 1}
        self.fits = functools.lru_cache(maxsize=512)(self._fits)
        self.pauses = functools.lru_cache(maxsize=512)(self._pauses)
        self.reachable = functools.lru_cache(maxsize=128)(self._reachable)

    @functools.cached_property
    def unsung_leads(self) -> np.ndarray:
        """(V,) 拼不出可唱的字的首字节。"""
        return np.array(
            [lead and not can_spell(piece, True) for lead, piece in zip(self.leads, self.bytes, strict=True)]
        )

    @functools.cached_property
    def rhymes(self) -> np.ndarray:
        """(V,) 每个词元最后一个可唱的字可能属于的辙（按位）；没有可唱的字为 0。第一次用到时才算。"""
        return np.array([self._rhyme_bits(text) for text in self.texts], dtype=np.int32)

    @staticmethod
    def _rhyme_bits(text: str | None) -> int:
        sung = [character for character in text or "" if character.isalnum()]
        if not sung:
            return 0
        if in_word(sung[-1]):
            return RHYME_BITS[None]
        return sum(RHYME_BITS[name] for name in possible_classes(sung[-1]))

    @functools.cached_property
    def units(self) -> list[list[str]]:
        """每个词元里可唱的字。"""
        return [sung_units(text or "") for text in self.texts]

    @functools.cached_property
    def words(self) -> frozenset[str]:
        """不许跨在停顿上的：注音用的词组，和词表里两到四个汉字的词元。"""
        joined = ("".join(units) for units in self.units if 2 <= len(units) <= LONGEST_WORD)
        return phrases() | frozenset(word for word in joined if not any(map(in_word, word)))

    @functools.cached_property
    def _continuations(self) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
        """词的开头几个字 → 还差的字：`words` 的与 `phrases` 的。"""
        found: tuple[dict[str, list[str]], dict[str, list[str]]] = {}, {}
        for words, rests in zip((self.words, phrases()), found, strict=True):
            for word in words:
                for size in range(1, len(word)):
                    rests.setdefault(word[:size], []).append(word[size:])
        return found

    @functools.cached_property
    def _starting(self) -> dict[str, list[int]]:
        """几个字 → 以它们开头的词元。"""
        found: dict[str, list[int]] = {}
        for token, units in enumerate(self.units):
            start = one_each(units[: LONGEST_WORD - 1])
            for size in range(1, len(start) + 1):
                found.setdefault(start[:size], []).append(token)
        return found

    def _completing(self, start: str, phrases_only: bool = False) -> np.ndarray:
        """接在 start 之后恰成一个词（后面还可以有别的字）的词元。"""
        rests = self._continuations[phrases_only].get(start, ())
        return np.array([token for rest in rests for token in self._starting.get(rest, ())], dtype=np.int64)

    @functools.cached_property
    def _leans_back(self) -> np.ndarray:
        """(V,) 开头是附在前一个字上的。"""
        return np.array([one_each(units[:1]) in LEANS_BACK for units in self.units])

    @functools.cached_property
    def _closers(self) -> np.ndarray:
        """(3, V) 末尾不是附在后一个字上的；末尾是认得的词的；只有一个字、以它开头的词写得出来的。"""
        ends = [one_each(units[-LONGEST_WORD:]) for units in self.units]
        free = [end[-1:] not in LEANS_FORWARD for end in ends]
        known = [ends_word(end) for end in ends]
        return np.array([free, known, [len(end) == 1 and len(self._completing(end, True)) > 0 for end in ends]])

    @functools.cached_property
    def _alone(self) -> np.ndarray:
        """(V,) 自成一截的一个字。"""
        return np.array([len(units) == 1 and units[0] in STANDS_ALONE for units in self.units])

    def _pauses(self, written: str, place: int, size: int, careful: bool) -> np.ndarray:
        """(V,) 写了 written（一字一个字符）之后，哪些词元不使第 place 个字之后的停顿落在词中间；见 `may_pause`。

        停顿在前面、当前的位置，看停顿之后写什么；在后面，看写到那里的词元收不收得住，写不到那里的不论。
        """
        good = np.ones(len(self.texts), dtype=bool)
        if place > len(written):
            return self._closes(written, place, size) if careful else good
        before, after = written[:place], written[place:]
        for start in range(max(0, len(written) - LONGEST_WORD + 1), place):
            good[self._completing(written[start:])] = False
        if not careful or after or before[-1:] == " ":
            return good
        if not ends_word(before, size):
            return self.counts == 0
        return good & ~self._leans_back

    def _closes(self, written: str, place: int, size: int) -> np.ndarray:
        """(V,) 写到 place 的词元里，末尾是认得的词、收得住的；写不到的都算。"""
        reaches = self.counts == place - len(written)
        if size == 1:
            return ~reaches | self._alone
        free, known, extends = self._closers
        closes = known.copy()
        for start in range(max(0, len(written) - LONGEST_WORD + 1), len(written)):
            for rest in self._continuations[True].get(written[start:], ()):
                closes[[token for token in self._starting.get(rest, ()) if len(self.units[token]) == len(rest)]] = True
        opens = place - len(written) == size == 2  # 两个字的一截：头一个字要能起一个词
        return np.where(reaches, closes & free, ~(opens & (self.counts == 1)) | extends)

    @functools.cached_property
    def _never(self) -> dict[str, np.ndarray]:
        """平、仄各 (V,)：词元里第几个字怎么读也不是它，按位。"""
        found = {want: np.zeros(len(self.texts), dtype=np.int32) for want in TONE_BITS}
        for token, units in enumerate(self.units):
            for place, unit in enumerate(units[:_WIDEST]):
                tones = 0 if in_word(unit[0]) else possible_tones(unit)
                for want, tone in TONE_BITS.items():
                    found[want][token] |= (not tones & tone) << place
        return found

    @functools.cached_property
    def _alone_tones(self) -> np.ndarray:
        """(V,) 一个汉字的词元单用时说得过去的平仄（按位），别的词元、多音字的繁体为 0：不先遮。"""
        single = [
            units[0] if len(units) == 1 and not in_word(units[0][0]) and simpler(units[0]) == units[0] else ""
            for units in self.units
        ]
        return np.array([tone_bits(unit)[0] if unit else 0 for unit in single], dtype=np.int32)

    def out_of_tone(self, written: str, wanted: int) -> np.ndarray:
        """(V,) 写了 written（一字一个字符）之后，一个字的词元里读音不是 wanted、前面的字也没有让它成词的。"""
        written = simpler(written)
        wrong = (self._alone_tones > 0) & (self._alone_tones != wanted)
        for start in range(max(0, len(written) - LONGEST_WORD + 1), len(written)):
            wrong[self._completing(written[start:], True)] = False
        return wrong

    @functools.cached_property
    def letters(self) -> np.ndarray:
        """(V, `_WIDEST`) 词元里每个字的码位，外文词与没有字的地方为 0。"""
        found = np.zeros((len(self.texts), _WIDEST), dtype=np.int32)
        for token, units in enumerate(self.units):
            for place, unit in enumerate(units[:_WIDEST]):
                found[token, place] = 0 if in_word(unit[0]) else ord(unit)
        return found

    @functools.cached_property
    def endings(self) -> np.ndarray:
        """(V,) 最后一个可唱的字可能的（辙，平仄），按位：多音字一种读音入韵、另一种合平仄的，不算。"""
        last = [units[-1][0] if units else "" for units in self.units]
        bits = (
            sum(_ENDING_BITS.get(pair, 0) for pair in possible_endings(character)) if character else 0
            for character in last
        )
        return np.array([*bits], dtype=np.int32)

    @functools.cached_property
    def marks(self) -> np.ndarray:
        """(3, V) 词元开头、结尾的标点（空格 1，，号 2，其他 3，没有 0），和当中有没有标点。"""
        found = np.zeros((3, len(self.texts)), dtype=np.int8)
        for token, text in enumerate(self.texts):
            body = (text or "").strip("".join(CLOSING) + " ")
            if not text or not body:
                found[0, token] = _mark(text or "")
                continue
            start = text.index(body)
            lead, trail = text[:start], text[start + len(body) :]
            found[:, token] = _mark(lead), _mark(trail), not body.isalnum()
        return found

    def rhyming(self, name: str) -> list[str]:
        """属于一个辙的单字，常用的在前：词表里的单字按语料中的次数排列。"""
        return [
            character
            for character, token in sorted(self.characters.items(), key=lambda pair: pair[1])
            if not in_word(character) and character.isalnum() and rhyme_class(character) == name
        ]

    def check(self, form: Form) -> None:
        """照这个词表能不能写。

        Raises:
            LyricsError: 藏头、关键词的字不在词表里，或没有属于那个辙的字。
        """
        for name, text in (("藏头", form.acrostic), ("关键词", "".join(form.keywords))):
            for character in text:
                if character not in self.characters:
                    raise LyricsError(f"{name}的「{character}」不在这个模型的词表里")
        if form.rhyme in RHYME_CLASSES and not self.rhyming(form.rhyme):
            raise LyricsError(f"这个模型的词表里没有属于{form.rhyme}辙的字")

    def _fits(self, shape: Shape, count: int, marked: bool) -> np.ndarray:
        """(V,) 写了 count 个字之后，各词元合不合 shape；marked：停顿的空格或逗号已经写了。"""
        lead, trail, inner = self.marks
        end = count + self.counts
        fit = end <= shape.length
        fit &= self.counts <= _WIDEST
        for want, never in self._never.items() if shape.tones else ():
            wanted = sum((tone == want) << at for at, tone in enumerate(shape.tones[count : count + _WIDEST]))
            fit &= never & wanted == 0
            if wanted & 1:
                fit &= ~self.leads
        for place, letter in shape.letters:
            if 0 <= place - count < _WIDEST:
                fit &= (self.counts <= place - count) | (self.letters[:, place - count] == ord(letter))
                if place == count:
                    fit &= ~self.leads
        if shape.letters:  # 词里不写标点与空格
            places = {place for place, _ in shape.letters}
            inside = [place for place in places if place - 1 in places]
            fit &= ~inner.astype(bool) & ~(np.isin(end, inside) & (trail > 0))
            if count in inside:
                fit &= lead == 0
        if not shape.breaks:
            return fit
        sung = self.counts > 0
        stop = shape.next_break(count)  # 词元到此为止，再后面的停顿不必看
        fit &= (end <= stop) & ~inner.astype(bool) & ~self.leads  # 没拼完的字不知道是不是词
        comma, space = shape.kind(count) == "，" and not marked, shape.may_space(count) and not marked
        fit &= (lead == 2) if comma else (lead == 0) | ((lead == 1) & space) | (~sung & (count == shape.length))
        if kind := shape.kind(stop):
            ends_with = (trail == 0) | ((trail == 2) if kind == "，" else (trail == 1) & shape.may_space(stop))
            fit &= ~sung | (end != stop) | ends_with
        at_place = (end == stop) | ((end == count) & bool(shape.kind(count)))
        return fit & ((trail == 0) | at_place)

    def _reachable(self, shape: Shape, endings: int | None, rhymes: int | None) -> tuple[bool, ...]:
        """写到第 0 … length 个字时，后面还有没有接得下去的词元（不看上下文）。

        Args:
            endings, rhymes: 末字可以有的 `endings`、`rhymes`；None 为不论。
        """
        found = [False] * shape.length + [True]
        usable = (self.counts > 0) & ~self.unbreakable
        for count in reversed(range(shape.length)):
            fit = usable & self.fits(shape, count, False)
            if shape.kind(count):
                fit |= usable & self.fits(shape, count, True)
            end = np.minimum(count + self.counts, shape.length)
            last = end == shape.length
            if endings is not None:
                fit &= ~last | (self.endings & endings > 0)
            if rhymes is not None:
                fit &= ~last | (self.rhymes & rhymes > 0)
            found[count] = bool((fit & np.array(found)[end]).any())
        return tuple(found)


def ending_bits(names: frozenset[str | None], tone: str) -> int:
    """末字可以有的（辙，平仄）：`Vocabulary.endings` 的位。"""
    want = TONE_BITS[tone]
    return sum(bit for (name, own), bit in _ENDING_BITS.items() if name in names and own == want)


def _mark(text: str) -> int:
    return {"": 0, " ": 1, "，": 2}.get(text, 3)


def decoded(piece: bytes) -> str | None:
    try:
        return piece.decode("utf-8") or None
    except UnicodeDecodeError:
        return None


@functools.lru_cache(maxsize=4096)
def can_spell(start: bytes, sung: bool) -> bool:
    """UTF-8 的开头几个字节（或全部）能不能拼成一个字；sung 时只算可唱的字。"""
    length, lowest = (2, 0x80) if start[0] < 0xE0 else (3, 0x800) if start[0] < 0xF0 else (4, 0x10000)
    code = start[0] & (0xFF >> (length + 1))
    for byte in start[1:]:
        code = code << 6 | byte & 0x3F
    missing = 6 * (length - len(start))
    codes = range(max(lowest, code << missing), min(0x10FFFF, (code << missing) + (1 << missing) - 1) + 1)
    return any(chr(c).isalnum() or (not sung and not 0xD800 <= c <= 0xDFFF) for c in codes)
