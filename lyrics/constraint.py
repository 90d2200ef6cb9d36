"""词表里的每个词元在句式里算什么，和写一行时守的规矩。"""

import functools
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from lyrics.form import Form, LyricsError
from lyrics.sound import RHYME_CLASSES, in_word, normalise, possible_classes, rhyme_class, sung_count

LONGEST_LINE = 24  # 有句式而没有给行长时，一行最多这么多字

CLOSING = frozenset("，。、；：！？…—,.;:!?")  # 有句式的行末可有一个；句中只许空格。括号、引号多是戏里的科白，不用

MOST_TOKENS_PER_CHARACTER = 4  # 一个字至多四个字节词元

_BITS = {name: 1 << place for place, name in enumerate(RHYME_CLASSES)} | {None: 1 << len(RHYME_CLASSES)}


@dataclass(frozen=True)
class LineRule:
    """一行的规矩。

    Attributes:
        least, most: 可唱的字数。
        rhymes: 末字可以属于哪些辙，其中 None 指不以汉字收尾；整个为 None 表示不论。
        first: 第一个字；空为不论。
        ends_song: 这一行写完可以收尾（`</s>`）。
        tidy: 句中只有字与单个空格，行末至多一个 `CLOSING` 里的标点。
    """

    least: int = 1
    most: int = LONGEST_LINE
    rhymes: frozenset[str | None] | None = None
    first: str = ""
    ends_song: bool = True
    tidy: bool = True

    @property
    def longest(self) -> int:
        """一稿最多几个词元：每个字之后可有一个标点。"""
        return (MOST_TOKENS_PER_CHARACTER + 1) * self.most + 2


ANY_LINE = LineRule(least=0, most=10**6, tidy=False)  # 没有句式：什么样的行都行


_CLOSING = f"[{''.join(sorted(CLOSING))}]"

_TIDY = re.compile(rf" ?(?:[^\W_]+(?: [^\W_]+)*(?: |{_CLOSING})?)?|{_CLOSING}")


class Vocabulary:
    """每个词元写出的文字在句式里算什么。

    Args:
        token_bytes: 每个词元的 UTF-8 字节，控制词元为空；256 个单字节词元中 0x80 以上的拼成一个字才有意义。
        newline_id, eos_id: 换行与 `</s>`。
    """

    def __init__(self, token_bytes: Sequence[bytes], newline_id: int, eos_id: int) -> None:
        self.newline_id, self.eos_id = newline_id, eos_id
        self.texts = [_decoded(piece) for piece in token_bytes]
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
                self.untidy[token] = not _TIDY.fullmatch(text)
                self.closing[token] = text[-1] in CLOSING
                self.spaced[:, token] = text[0] == " ", text[-1] == " "
            else:
                piece = self.bytes[token]
                self.leads[token] = len(piece) == 1 and 0xC2 <= piece[0] <= 0xF4
                self.unbreakable[token] = not self.leads[token]
        self.characters = {text: token for token, text in enumerate(self.texts) if text and len(text) == 1}

    @functools.cached_property
    def unsung_leads(self) -> np.ndarray:
        """(V,) 拼不出可唱的字的首字节。"""
        return np.array(
            [lead and not _can_spell(piece, True) for lead, piece in zip(self.leads, self.bytes, strict=True)]
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
            return _BITS[None]
        return sum(_BITS[name] for name in possible_classes(sung[-1]))

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
            LyricsError: 藏头的字不在词表里，或没有属于那个辙的字。
        """
        for character in form.acrostic:
            if character not in self.characters:
                raise LyricsError(f"藏头的「{character}」不在这个模型的词表里")
        if form.rhyme in RHYME_CLASSES and not self.rhyming(form.rhyme):
            raise LyricsError(f"这个模型的词表里没有属于{form.rhyme}辙的字")


def _decoded(piece: bytes) -> str | None:
    try:
        return piece.decode("utf-8") or None
    except UnicodeDecodeError:
        return None


class LineConstraint:
    """写一行时守的规矩（`Constraint`）。

    `forbidden` 按表遮住词元：字数会超的、末字不可能入韵的；`refuses` 再把抽到的词元放进这一行细看：
    多音字在这里的读法、是否照抄语料。

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
        self._given = len(start)
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
            last |= vocabulary.closing
            mask |= vocabulary.unsung_leads | vocabulary.untidy | vocabulary.closing & (total < rule.least)
            mask |= vocabulary.spaced[0] & (not self.text[-1:].isalnum()) | vocabulary.spaced[1] & (total == rule.most)
        if rule.rhymes is not None:
            wanted = sum(_BITS[name] for name in rule.rhymes)
            mask |= last & (vocabulary.counts > 0) & (vocabulary.rhymes & wanted == 0)
        if rule.first and not self.text:
            mask |= vocabulary.firsts != ord(rule.first)
        whole = rule.least <= self.count <= rule.most and self._in_rhyme(self.text)
        if rule.tidy:
            whole = whole and not self.text.endswith(" ")
            if self.text[self._given :][-1:] in CLOSING:
                mask[:] = True
            elif not whole or not self.text:
                mask |= vocabulary.closing & (vocabulary.counts == 0)
        mask[vocabulary.newline_id] = not whole
        mask[vocabulary.eos_id] = not (whole and rule.ends_song)
        self._mask = mask
        return mask

    def refuses(self, token: int) -> bool:
        vocabulary = self.vocabulary
        if self._mask[token]:
            return True
        if token in (vocabulary.newline_id, vocabulary.eos_id):
            return bool(self.following) and self.copied(normalise(self.text) + self.following, len(self.following))
        text = self._completed(token)
        if not text:
            return False
        whole = self.text + text
        if text.splitlines() != [text] or (self.rule.tidy and not _TIDY.fullmatch(whole[self._given :])):
            return True
        last = sung_count(whole) == self.rule.most or (self.rule.tidy and text[-1] in CLOSING)
        if last and not self._in_rhyme(whole):
            return True
        new = normalise(text)
        return bool(new) and self.copied(normalise(whole), len(new))

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
        return _decoded(self.pending + self.vocabulary.bytes[token]) if self.pending else self.vocabulary.texts[token]

    def _in_rhyme(self, line: str) -> bool:
        return self.rule.rhymes is None or rhyme_class(line) in self.rule.rhymes

    def _unfinished_bytes(self) -> np.ndarray:
        """只许接上能拼成字的后续字节。"""
        mask = np.ones(len(self.vocabulary.texts), dtype=bool)
        for token, piece in enumerate(self.vocabulary.bytes):
            if len(piece) == 1 and 0x80 <= piece[0] <= 0xBF:
                mask[token] = not _can_spell(self.pending + piece, self.rule.tidy)
        return mask


@functools.lru_cache(maxsize=4096)
def _can_spell(start: bytes, sung: bool) -> bool:
    """UTF-8 的开头几个字节（或全部）能不能拼成一个字；sung 时只算可唱的字。"""
    length, lowest = (2, 0x80) if start[0] < 0xE0 else (3, 0x800) if start[0] < 0xF0 else (4, 0x10000)
    code = start[0] & (0xFF >> (length + 1))
    for byte in start[1:]:
        code = code << 6 | byte & 0x3F
    missing = 6 * (length - len(start))
    codes = range(max(lowest, code << missing), min(0x10FFFF, (code << missing) + (1 << missing) - 1) + 1)
    return any(chr(c).isalnum() or (not sung and not 0xD800 <= c <= 0xDFFF) for c in codes)
