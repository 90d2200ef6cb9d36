"""歌词之为歌词：可唱的字、韵、句式，和语料里的原句。

只收文字：词表与语料的歌由脚本交进来，不知道模型与缓存。
"""

import dataclasses
import difflib
import functools
import json
import mmap
import os
import re
import shutil
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

LONGEST_LINE = 24  # 有句式而没有给行长时，一行最多这么多字
CLOSING = frozenset("，。、；：！？…—,.;:!?")  # 有句式的行末可有一个；句中只许空格。括号、引号多是戏里的科白，不用
MOST_TOKENS_PER_CHARACTER = 4  # 一个字至多四个字节词元
COPY_INDEX_VERSION = 1  # 索引的内容或格式有变时加一，旧索引随之重建
_CHARACTER = 4  # UTF-32 一个字的字节数
_INDEX_FILES = ("text", "suffixes.npy", "starts.npy", "labels")


class LyricsError(ValueError):
    """句式写法有误，或照它写不出来；消息写明是哪一项。"""


# ---------------------------------------------------------------------------
# 可唱的字
# ---------------------------------------------------------------------------


def in_word(character: str) -> bool:
    """拼音文字的字母与数字（连成一个词）；汉字、假名、谚文各是一个字。"""
    return character.isalnum() and (character < "\u2e80" or "\uff10" <= character <= "\uff5a")


def sung_count(text: str, after_word: bool = False) -> int:
    """可唱的字数：汉字各一个，一个外文词或数目算一个，标点、空格、换行不算。

    Args:
        after_word: text 前面紧接着一个外文词，开头的字母还是那个词的。
    """
    count = 0
    for character in text:
        word = in_word(character)
        count += character.isalnum() and not (word and after_word)
        after_word = word
    return count


def normalise(text: str) -> str:
    """只留唱得出来的字：字母、汉字与数字；空格、标点和换行都去掉。"""
    return re.sub(r"[\W_]+", "", text)


def lines_of(text: str) -> list[str]:
    """歌词的各行，不含空行。"""
    return [line for line in text.split("\n") if line.strip()]


# ---------------------------------------------------------------------------
# 韵
# ---------------------------------------------------------------------------

# 十三辙（北方戏曲、曲艺通用的韵部）与各辙的韵母，ü 写作 v；知、资、儿的韵母归一七辙。
RHYME_CLASSES = {
    "发花": "a ia ua",
    "梭坡": "o e uo",
    "乜斜": "ie ve ê",
    "一七": "i v er",
    "姑苏": "u",
    "怀来": "ai uai",
    "灰堆": "ei uei",
    "遥条": "ao iao",
    "油求": "ou iou",
    "言前": "an ian uan van",
    "人辰": "en in uen vn",
    "江阳": "ang iang uang",
    "中东": "eng ing ueng ong iong",
}
_CLASS_OF_FINAL = {final: name for name, finals in RHYME_CLASSES.items() for final in finals.split()}
_BITS = {name: 1 << place for place, name in enumerate(RHYME_CLASSES)} | {None: 1 << len(RHYME_CLASSES)}
_LAST_RUN = re.compile(r"([^\W\d_]+)[\W_]*$")  # 行末的一串文字
# 多音字的繁体写法：pypinyin 的词组是简体
_SIMPLER = str.maketrans(
    "遊樂覺說沒還兒長調種為強勁應處數難幾當稱盡藏乾縫間載號傳彈轉鮮興奧惡",
    "游乐觉说没还儿长调种为强劲应处数难几当称尽藏干缝间载号传弹转鲜兴奥恶",
)
_ZHU = re.compile("(?:[名显顯卓原专專巨论論译譯编編合土所昭拙遗遺新旧舊大])著$")  # 其余的「著」就是「着」
# 不是儿化、自成一个音节的「儿」
_SYLLABLE_ER = re.compile(
    "(?:[女婴嬰孤男少幼健胎宠寵娇嬌吾生妻育乳患弃棄我爱亲乖痴宁麟佳侄遗]|(?<!小)孩|幸运|流浪|混血|新生|弄潮|小小|早产|[一二三四五六七八九十]个小)儿$|^儿$"
)
# pypinyin 在行末读错的多音字：(行末的样子, 辙)，先对上的算
_READINGS = [
    (re.compile(pattern), name)
    for pattern, name in (
        (r"(.)\1地$", "梭坡"),  # 慢慢地
        (r"[不得没睡找猜摸就]着$|[一这那高]着$(?<=[棋差高下胜]一着)", "遥条"),  # 睡不着、棋差一着
        (r"着$", "梭坡"),
        (r"[我你您他她它们却可都也总仍么心人谁就竟明总]还$", "怀来"),
        (r"还$", "言前"),  # 何日还
        (r"(?:舍|记|认|由|怪|见|要|使|懂|晓|觉|值|获|取|赢|记|认)不?得了$", "梭坡"),
        (r"[不得]了$|(?:何时|几时|没完没|未|一了百|终|明|直截|甚了)了$", "遥条"),
        (r"(?:还|总|必|非|就)得$", "灰堆"),
        (r"泪.?[一两几千万数]行$|[两几三四五六七八九十百千数]行$|(?:银|本|内|外|改|在|这一|那一|字里)行$", "江阳"),
        (r"[相对匀]称$", "人辰"),
        (r"游说$", "灰堆"),
        (r"[强刚苍遒疾]劲$", "中东"),
        (r"[一二三四五六七八九十百千万几数]石$", "言前"),
        (r"[剥瘦减峭斧]削$|咀嚼$", "乜斜"),
        (r"[削嚼]$", "遥条"),
        (r"[盘活解]剥$", "梭坡"),
        (r"剥$", "遥条"),
        (r"不能落$|个不落$", "发花"),
        (r"掉色$", "怀来"),
        (r"麻将.*和$", "姑苏"),
    )
]


@functools.cache
def _pypinyin() -> Any:
    """pypinyin 载入要半秒，用到韵时才载入。"""
    import pypinyin

    return pypinyin


@functools.lru_cache(maxsize=65536)
def rhyme_class(line: str) -> str | None:
    """一行末字所属的辙，多音字照这一行里的读法；不以汉字收尾时 None。"""
    run = _LAST_RUN.search(line)
    if run is None or in_word(run[1][-1]):  # 拼音文字里也有 ai、a，不是韵母
        return None
    words = run[1].translate(_SIMPLER)
    if words.endswith("著") and not _ZHU.search(words):
        words = words[:-1] + "着"
    if words.endswith("儿") and not _SYLLABLE_ER.search(words):
        return rhyme_class(words[:-1])  # 儿化随前一个字：花儿押发花
    for pattern, name in _READINGS:
        if pattern.search(words):
            return name
    pypinyin = _pypinyin()
    finals = pypinyin.lazy_pinyin(words, style=pypinyin.Style.FINALS, strict=True)
    return _CLASS_OF_FINAL.get(finals[-1])


@functools.lru_cache(maxsize=65536)
def possible_classes(character: str) -> frozenset[str | None]:
    """一个字各种读音所属的辙；没有读音的是 {None}。"""
    if in_word(character):
        return frozenset({None})
    if character in "儿兒":  # 儿化随前一个字
        return frozenset(RHYME_CLASSES)
    pypinyin = _pypinyin()
    found = set()
    for form in {character, character.translate(_SIMPLER)}:
        readings = pypinyin.pinyin(form, style=pypinyin.Style.FINALS, strict=True, heteronym=True)
        found |= {_CLASS_OF_FINAL.get(final) for final in readings[0]} if readings else set()
    found |= {"地": {"梭坡"}, "著": {"梭坡", "遥条"}}.get(character, set())
    return frozenset(found - {None}) or frozenset({None})


# ---------------------------------------------------------------------------
# 句式
# ---------------------------------------------------------------------------


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


SHOWN = 30  # 消息里最多引一行的这么多字
ANY_LINE = LineRule(least=0, most=10**6, tidy=False)  # 没有句式：什么样的行都行


@dataclass(frozen=True)
class Form:
    """整首歌的句式。

    Attributes:
        lines: 几行；None 由模型收尾。
        lengths: 各行的（最少，最多）字数，循环使用；空为不限。
        rhyme: `none`、`auto` 或一个辙名。
        scheme: 韵式，循环使用：同一个字母押同一个韵，只出现一次的字母与 X 不押，但只出现一次的不与别的字母同韵。
        acrostic: 第 i 行以第 i 个字开头。
        sections: （名称，行数）；行数为 0 的是前面同名一段的重复。
    """

    lines: int | None = None
    lengths: tuple[tuple[int, int], ...] = ()
    rhyme: str = "none"
    scheme: str = "A"
    acrostic: str = ""
    sections: tuple[tuple[str, int], ...] = ()

    @property
    def given(self) -> bool:
        """有没有任何要求。"""
        return self != Form()


def make_form(
    lines: int | None, line_chars: str | None, rhyme: str, scheme: str | None, acrostic: str, structure: str | None
) -> Form:
    """命令行上的写法 → `Form`。

    Raises:
        LyricsError: 写法有误，或几项互相矛盾。
    """
    sections = _parse_structure(structure) if structure else ()
    total = sum(count for _, count in _laid_out(sections))
    if sections and lines is not None and lines != total:
        raise LyricsError(f"--structure 一共 {total} 行，与 --lines {lines} 不符")
    lines = total if sections else lines
    if acrostic:
        if not all(character.isalnum() and not in_word(character) for character in acrostic):
            raise LyricsError(f"--acrostic 只能是汉字：{acrostic}")
        lines = len(acrostic) if lines is None else lines
        if lines < len(acrostic):
            raise LyricsError(f"藏头有 {len(acrostic)} 个字，却只写 {lines} 行")
        if any(count == 0 for _, count in sections):
            raise LyricsError("藏头与重复的段落不能同用：重复的行开头不会变")
    if rhyme not in ("none", "auto", *RHYME_CLASSES):
        near = difflib.get_close_matches(rhyme, RHYME_CLASSES, n=1, cutoff=0.4)
        hint = f"，是否指 {near[0]}？" if near else ""
        raise LyricsError(f"没有韵部 {rhyme}{hint}；可用 auto、none、{'、'.join(RHYME_CLASSES)}")
    scheme = scheme.upper() if scheme else None
    if scheme and not re.fullmatch("[A-Z]+", scheme):
        raise LyricsError(f"--rhyme_scheme 应是 AABA 这样的字母，X 为不押：{scheme}")
    if scheme and rhyme == "none":
        rhyme = "auto"
    return Form(lines, _parse_lengths(line_chars) if line_chars else (), rhyme, scheme or "A", acrostic, sections)


def _parse_lengths(text: str) -> tuple[tuple[int, int], ...]:
    lengths = []
    for part in re.split("[,，]", text):
        found = re.fullmatch(r"\s*(\d{1,3})\s*(?:[-–~～]\s*(\d{1,3})\s*)?", part)
        least, most = (int(found[1]), int(found[2] or found[1])) if found else (0, 0)
        if not 1 <= least <= most:
            raise LyricsError(f"--line_chars 应是 7、5-9 或 7,7,5,7 这样的字数：{text}")
        lengths.append((least, most))
    return tuple(lengths)


def _parse_structure(text: str) -> tuple[tuple[str, int], ...]:
    sections: list[tuple[str, int]] = []
    for part in text.split():
        found = re.fullmatch(r"(\D+?)(\d{0,3})", part)
        if found is None or found[2] == "0" * len(found[2]) != "":
            raise LyricsError(f"--structure 应是「主歌4 副歌4 主歌4 副歌」这样：段名加行数，不写行数的是重复：{part}")
        count = int(found[2] or 0)
        if count == 0 and found[1] not in [name for name, number in sections if number]:
            raise LyricsError(f"--structure 里第一次出现的 {part} 要写行数，例如 {part}4")
        sections.append((found[1], count))
    return tuple(sections)


def _laid_out(sections: Sequence[tuple[str, int]]) -> list[tuple[str, int]]:
    """重复的段落补上行数。"""
    counts: dict[str, int] = {}
    laid_out = []
    for name, count in sections:
        counts[name] = count or counts[name]
        laid_out.append((name, counts[name]))
    return laid_out


# ---------------------------------------------------------------------------
# 约束：词元 → 句式
# ---------------------------------------------------------------------------


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
    """写一行时守的规矩（`generation.Constraint`）。

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


# ---------------------------------------------------------------------------
# 一首歌：一行一行地写
# ---------------------------------------------------------------------------


@dataclass
class SongPlan:
    """照句式写一首歌，记着写到哪里、各个韵脚是哪一辙。

    Args:
        prompt: 歌的开头；完整的行算作已写的行，最后半行接着写。
        encode: 文字 → 词元。
        copies: 语料的索引；None 表示不查照抄。
        max_copy: 与语料中任何一首连续相同的字不超过这么多（可唱的字，跨行也算）；0 为不限。
        fixed: 第 i 行（从 0 起）已定的文字，写到那里照搬。

    Attributes:
        lines: 写好的各行。
        tokens: 新写了多少个词元。
        min_tokens: 没有定行数时，写满这么多个词元之前不收尾。
        ended: 是否写到了头（写满行数，或模型收尾）。

    Raises:
        LyricsError: 句式与词表、开头不合，或有一行写不出来。
    """

    form: Form
    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]
    prompt: str = ""
    copies: Any = None
    max_copy: int = 0
    fixed: dict[int, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    tokens: int = 0
    ended: bool = False
    min_tokens: int = 0

    def __post_init__(self) -> None:
        self.vocabulary.check(self.form)
        self._classes: dict[str, str] = {}
        if self.form.rhyme in RHYME_CLASSES:
            self._classes[self._main_letter] = self.form.rhyme
        self._sung = ""
        self._sections = _laid_out(self.form.sections)
        *whole, self._start = self.prompt.split("\n")
        whole = [line for line in whole if line.strip()]
        for line in whole:
            self.add(line)
        self._given = len(whole)
        if not self.form.given:
            return
        if self.form.lines is not None and len(whole) + bool(self._start) > self.form.lines:
            raise LyricsError(f"开头已有 {len(whole) + bool(self._start)} 行，却只写 {self.form.lines} 行")
        for index, line in enumerate(self.lines + [self._start] * bool(self._start)):
            first = self.form.acrostic[index : index + 1]
            if not line.startswith(first):
                raise LyricsError(f"开头的第 {index + 1} 行「{line[:SHOWN]}」不以藏头的「{first}」开始")
        most = self.rule(len(whole)).most
        if self._start and sung_count(self._start) > most:
            raise LyricsError(f"开头的最后一行「{self._start[:SHOWN]}」已超过这一行的 {most} 个字")

    def rule(self, index: int) -> LineRule:
        """第 index 行（从 0 起）的规矩。"""
        form = self.form
        if not form.given:
            return ANY_LINE if self.tokens >= self.min_tokens else dataclasses.replace(ANY_LINE, ends_song=False)
        least, most = form.lengths[index % len(form.lengths)] if form.lengths else (1, LONGEST_LINE)
        last = self.tokens >= self.min_tokens if form.lines is None else index + 1 == form.lines
        return LineRule(least, most, self._rhymes(index), form.acrostic[index : index + 1], last)

    def add(self, line: str) -> None:
        """记下写好的一行。"""
        letter = self._letter(len(self.lines))
        self.lines.append(line)
        self._sung += normalise(line)
        if letter and self._binds(letter) and letter not in self._classes:
            found = rhyme_class(line)
            if found is not None:
                self._classes[letter] = found

    def write(self, composer: Any, max_tokens: int | None = None) -> Iterator[str]:
        """写到最后一行（或模型收尾、写满 max_tokens 个词元），逐行给出接在开头之后的文字。

        Args:
            composer: `generation.Composer`，前文是这首歌的开头。
            max_tokens: 没有句式时必须给出。
        """
        start = self._start
        while (index := len(self.lines)) != self.form.lines and (max_tokens is None or self.tokens < max_tokens):
            given = self._known(index)
            if given is not None:
                composer.feed([*self.encode(given[len(start) :]), self.vocabulary.newline_id])
                text = given
            else:
                following = self.encode(self.fixed[index + 1]) if index + 1 in self.fixed else ()
                new = functools.partial(self.constraint, index, start)
                longest = self.rule(index).longest if self.form.given else max_tokens - self.tokens
                draft = composer.line(new, longest, self._repeats, following, may_cut=not self.form.given)
                if draft is None:
                    raise LyricsError(
                        f"第 {index + 1} 行写不出来：照行长、韵脚、藏头与 --max_copy 没有可用的字；请放宽一项"
                    )
                text = draft.constraint.text
                self.tokens += len(draft.tokens)
                self.ended = draft.constraint.song_ended
            self.add(text)
            new_line = "" if index == self._given else "\n\n" if self._opens_section(index) else "\n"
            yield new_line + text[len(start) :]
            start = ""
            if self.ended:
                return
        self.ended = self.form.lines is not None

    def constraint(self, index: int, start: str = "", rule: LineRule | None = None) -> LineConstraint:
        """写第 index 行的新约束；rule 可换掉句式里的规矩。"""
        return LineConstraint(self.vocabulary, rule or self.rule(index), start, self.copied, self._following(index))

    def copied(self, line: str, new: int) -> bool:
        """写好的行再接上 line（可唱的字），末尾 new 个字里有没有哪一个使照抄超过 max_copy。"""
        if not self.max_copy:
            return False
        span = self.max_copy + 1
        text = (self._sung + line)[-(self.max_copy + new) :]
        ends = range(max(span, len(text) - new + 1), len(text) + 1)
        return any(self.copies.contains(text[end - span : end]) for end in ends)

    def _repeats(self, draft: Any) -> bool:
        return normalise(draft.constraint.text) in {normalise(line) for line in self.lines}

    def _letter(self, index: int) -> str | None:
        """第 index 行在韵式里的字母；不押的是 None。"""
        if self.form.rhyme == "none":
            return None
        place = index - next((start for start, length, _ in self._spans() if start <= index < start + length), 0)
        letter = self.form.scheme[place % len(self.form.scheme)]
        return None if letter == "X" else letter

    @property
    def _main_letter(self) -> str:
        """--rhyme 说的是这个字母的韵：第一个出现不止一次的；都只出现一次时是第一个。"""
        letters = self.form.scheme.replace("X", "")
        return next((letter for letter in letters if letters.count(letter) > 1), letters[:1])

    def _binds(self, letter: str) -> bool:
        return self.form.scheme.count(letter) > 1 or letter == self._main_letter

    def _rhymes(self, index: int) -> frozenset[str | None] | None:
        letter = self._letter(index)
        if letter is None:
            return None
        if letter in self._classes:
            return frozenset({self._classes[letter]})
        free = frozenset(RHYME_CLASSES) - set(self._classes.values())
        return free if self._binds(letter) else free | {None}

    def _spans(self) -> list[tuple[int, int, str]]:
        """各段的（首行，行数，名称）。"""
        spans, start = [], 0
        for name, count in self._sections:
            spans.append((start, count, name))
            start += count
        return spans

    def _opens_section(self, index: int) -> bool:
        return any(start == index for start, _, _ in self._spans())

    def _known(self, index: int) -> str | None:
        """不必写的一行：已定的，或重复的段落照搬前面最近的同名一段。"""
        if index in self.fixed:
            return self.fixed[index]
        spans = self._spans()
        for place, (start, length, name) in enumerate(spans):
            if start <= index < start + length and self.form.sections[place][1] == 0:
                source = next(begin for begin, _, earlier in reversed(spans[:place]) if earlier == name) + index - start
                return self.lines[source] if source < len(self.lines) else None
        return None

    def _following(self, index: int) -> str:
        """紧接在第 index 行之后的已定的行里，开头 max_copy 个可唱的字。"""
        sung = ""
        while len(sung) < self.max_copy and (line := self._known(index := index + 1)) is not None:
            sung += normalise(line)
        return sung[: self.max_copy]


# ---------------------------------------------------------------------------
# 语料里的原句
# ---------------------------------------------------------------------------


class Span(NamedTuple):
    """一段文字里与语料相同的片段。

    Attributes:
        start, length: 在这段文字里的起点与长度（字）。
        song: 歌的序号；有它的歌里最前的一首。
    """

    start: int
    length: int
    song: int


class CopyIndex:
    """语料里全部片段的索引：后缀数组（Manber 与 Myers 1993）。

    不用片段的哈希表：那样每种长度要一张表，还有误报；后缀数组只排一次，任意长度的片段都能查，
    能求最长的片段，逐字比较，不会认错。片段可以跨行，不会跨歌。

    文字存成 UTF-32-BE：位置就是字数，字节的大小次序就是字的次序。每个字在磁盘上占 8 字节，
    都是内存映射，几个进程共用一份。查找要的文字都须先经 `normalise`；n 为语料的字数，
    查一次做 log₂ n 次比较，两千万字约 10 微秒。
    """

    def __init__(self, folder: Path, own: int) -> None:
        with open(folder / "text", "rb") as file:
            self._text = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._positions = np.load(folder / "suffixes.npy", mmap_mode="r")
        self._suffixes = memoryview(self._positions)  # 逐个取值时比数组快
        self._starts = memoryview(np.load(folder / "starts.npy"))
        self._own_end = self._starts[own]
        self._label_bytes = (folder / "labels").read_bytes()

    @classmethod
    def build(
        cls,
        songs: Sequence[str],
        labels: Sequence[str],
        folder: Path,
        fingerprint: str,
        own: int,
        progress: Callable[[str], None] = lambda message: None,
    ) -> None:
        """建好索引，整个换掉 folder：中途停下，不会留下看似完整的半个索引。同时只能有一个进程在建。

        O(n log n log L) 时间（L 为最长的重复片段），内存约每字 45 字节，另加 songs。

        Args:
            songs: 歌词，未经 `normalise`。
            labels: 每首歌的称呼，与 songs 一一对应。
            fingerprint: 语料的指纹，`load` 时核对。
            own: 开头这么多首是训练用的，其余是留出的。
            progress: 收一行进度消息。

        Raises:
            OSError: 写不了，例如磁盘已满。
            ValueError: 称呼或 own 与歌数不符。
        """
        if len(labels) != len(songs) or not 0 <= own <= len(songs):
            raise ValueError(f"{len(songs)} 首歌、{len(labels)} 个称呼、训练用 {own} 首")
        progress(f"照抄索引：整理 {len(songs):,} 首歌")
        sung = [normalise(song) for song in songs]
        starts = np.cumsum([1, *(len(song) + 1 for song in sung)])  # 第 i 首是 text[starts[i] : starts[i + 1] - 1]
        text = "\0".join(["", *sung, ""]).encode("utf-32-be")
        del sung
        suffixes = _sorted_suffixes(text, progress)

        for leftover in folder.parent.glob(f"{folder.name}.*.tmp"):
            shutil.rmtree(leftover)
        temporary = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        progress("照抄索引：写入磁盘")
        try:
            temporary.mkdir(parents=True)
            lines = "\n".join(" ".join(label.split()) for label in labels)
            contents = (text, suffixes, starts, lines.encode("utf-8", "replace"))
            for name, content in zip(_INDEX_FILES, contents, strict=True):
                _write_through(temporary / name, content)
            meta = {"version": COPY_INDEX_VERSION, "fingerprint": fingerprint, "own": own, "sizes": _sizes(temporary)}
            _write_through(temporary / "meta.json", json.dumps(meta).encode())
            if folder.exists():
                shutil.rmtree(folder)
            temporary.rename(folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)

    @classmethod
    def load(cls, folder: Path, fingerprint: str) -> "CopyIndex | None":
        """读出索引（内存映射）；不存在、版本不符、指纹不以 fingerprint 开头、被截断时 None。"""
        try:
            meta = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
            expected = (COPY_INDEX_VERSION, _sizes(folder))
            if (meta["version"], meta["sizes"]) != expected or not meta["fingerprint"].startswith(fingerprint):
                return None
            return cls(folder, meta["own"])
        except (OSError, ValueError, TypeError, AttributeError, LookupError):
            return None

    def contains(self, span: str, training_only: bool = False) -> bool:
        """语料里有没有这个片段；training_only 时只看训练用的歌。"""
        if training_only:
            return self._first(span) < self._own_end
        target, prefix = self._search(span)
        low = bisect_left(self._suffixes, target, key=prefix)
        return low < len(self._suffixes) and prefix(self._suffixes[low]) == target

    def longest(self, text: str, training_only: bool = False) -> Span:
        """text 里最长的、整段在某一首歌里的片段；一样长的取最前。一个字都没有时 (0, 0, -1)。

        最多查 2 × len(text) 次。
        """
        start = length = 0
        for first in range(len(text)):  # 只试比已有的更长的：片段在语料里，它的每一段也在
            while first + length < len(text) and self.contains(text[first : first + length + 1], training_only):
                start, length = first, length + 1
        if not length:
            return Span(0, 0, -1)
        song = bisect_right(self._starts, self._first(text[start : start + length])) - 1
        return Span(start, length, song)

    def last_span(self, text: str, limit: int, training_only: bool = False) -> int:
        """text 的末尾有多少个字（最多数到 limit）连着在语料里；查 log₂ limit 次。"""
        lengths = range(1, min(len(text), limit) + 1)
        return bisect_left(
            lengths, True, key=lambda length: not self.contains(text[len(text) - length :], training_only)
        )

    def label(self, song: int) -> str:
        """第 song 首（从 0 起）的称呼。

        Raises:
            IndexError: 没有这首歌。
        """
        if not 0 <= song < len(self._starts) - 1:
            raise IndexError(f"没有第 {song} 首歌")
        return self._labels[song]

    @functools.cached_property
    def _labels(self) -> list[str]:
        return self._label_bytes.decode("utf-8").split("\n")

    def _search(self, span: str) -> tuple[bytes, Callable[[int], bytes]]:
        """要找的字节，和「位置 → 那里同样长的字节」。"""
        target = span.encode("utf-32-be")
        text, size = self._text, len(target)
        return target, lambda position: text[_CHARACTER * position : _CHARACTER * position + size]

    def _first(self, span: str) -> int:
        """片段在语料里最前的位置；没有时是语料的末尾。"""
        target, prefix = self._search(span)
        low = bisect_left(self._suffixes, target, key=prefix)
        high = bisect_right(self._suffixes, target, lo=low, key=prefix)
        return int(self._positions[low:high].min(initial=self._starts[-1]))


def _sorted_suffixes(text: bytes, progress: Callable[[str], None]) -> np.ndarray:
    """按「从这里到歌尾」的次序排好的全部字的位置，uint32；分隔符不在内。

    前缀倍增：已按前 h 个字排好名次，(自己的名次, 往后 h 字处的名次) 就是前 2h 个字的次序；
    每轮只排还有并列的。
    """
    codes = np.frombuffer(text, ">u4")
    separators, suffixes = np.flatnonzero(codes == 0), np.flatnonzero(codes).astype(np.uint32)
    rank = codes.astype(np.uint32) + len(separators)
    rank[separators] = np.arange(len(separators))  # 各不相同：比到歌尾就分出先后，不会比进下一首
    places = np.arange(len(suffixes))  # 还有并列的名次
    span = 1
    while len(places):
        progress(f"照抄索引：按前 {2 * span} 个字排序，{len(places):,} 处")
        tied = suffixes[places]
        key = rank[tied].astype(np.uint64) << 32 | rank[tied + span]
        order = np.argsort(key)
        tied, key = tied[order], key[order]
        del order
        suffixes[places] = tied
        fresh = np.append(True, key[1:] != key[:-1])
        rank[tied] = len(separators) + places[fresh][np.cumsum(fresh) - 1]  # 并列的都取其中最小的名次
        places = places[~(fresh & np.append(fresh[1:], True))]
        span *= 2
    return suffixes


def _write_through(path: Path, content: bytes | np.ndarray) -> None:
    """写到磁盘上才返回：断电之后，改好名的索引不会是空的。"""
    with open(path, "wb") as file:
        if isinstance(content, bytes):
            file.write(content)
        else:
            np.save(file, content)
        file.flush()
        os.fsync(file.fileno())


def _sizes(folder: Path) -> dict[str, int]:
    return {name: os.path.getsize(folder / name) for name in _INDEX_FILES}
