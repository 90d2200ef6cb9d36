"""韵典：与一行的末字同韵、近韵、双押的常用字与词。"""

import functools
from typing import NamedTuple

from lyrics.sound import in_word, normalise, rhyme_class
from lyrics.vocabulary import Vocabulary
from lyrics.words import phrases

# 听来相近的辙：an–ang、en–eng、in–ing、o–ou；一七辙里 i 与 ü 唱来有别，分开列
_NEAR = {"言前": "江阳", "人辰": "中东", "梭坡": "油求", "一七": "一七ü"}
_NEAR |= {other: name for name, other in _NEAR.items()}

# 虚字：含它的词元多半只是常连着写（人未、了一），注音的词组里没有就不当作词
_FUNCTION_CHARACTERS = frozenset(
    "不未又也都还就才已将却若是在有无见来去到得把被与和我你他她它之其而且此为可能应须莫休从自更最何几谁怎那这一二三两个人"
    "只再没很了的着过地里上下中外边前后时处如似像向对给让叫使但便"
)


class Rhymes(NamedTuple):
    """韵典里的一页，各项都是常用的在前。

    Attributes:
        name: 哪一辙，如 `江阳辙`。
        characters: 同韵的字。
        words: 同韵的两个字的词。
        near: 近韵的字与词。
        double: 末两字与这一行的末两字都同韵的，两三个字。
    """

    name: str
    characters: list[str]
    words: list[str]
    near: list[str]
    double: list[str]


def rhyme_kind(line: str, name: str | None = None) -> str | None:
    """一行末字的辙，一七辙里读 ü 的另算；不以汉字收尾时 None。

    Args:
        name: 选定读作这一辙。
    """
    name = name or rhyme_class(line)
    if name != "一七":
        return name
    import pypinyin

    finals = pypinyin.lazy_pinyin(normalise(line)[-1:], style=pypinyin.Style.FINALS, strict=True)
    return "一七ü" if finals and finals[0] == "v" else "一七"


class RhymeDictionary:
    """词表里的字与词按韵查；第一次查时备好，约一秒。"""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary

    def find(self, line: str, reading: str | None = None) -> Rhymes | None:
        """与 line 的末字同韵的；不以汉字收尾时 None。

        Args:
            reading: 末字选定读作哪一辙。
        """
        kind = rhyme_kind(line, reading)
        if kind is None:
            return None
        near = _NEAR.get(kind)
        sung = normalise(line)
        two = (rhyme_kind(sung[:-1]), kind) if len(sung) > 1 else None
        single = [(text, ends[-1]) for text, ends in self._entries if len(text) == 1]
        words = [(text, ends) for text, ends in self._entries if len(text) > 1 and text != sung[-len(text) :]]
        return Rhymes(
            "一七辙（ü）" if kind == "一七ü" else f"{kind}辙",
            [text for text, end in single if end == kind],
            [text for text, ends in words if len(text) == 2 and ends[-1] == kind],
            [text for text, end in single if end == near] + [text for text, ends in words if ends[-1] == near],
            [text for text, ends in words if two and ends == two],
        )

    @functools.cached_property
    def _entries(self) -> list[tuple[str, tuple[str | None, ...]]]:
        """（字或词，末两字各是哪一辙），常用的在前。"""
        found = []
        for units in self.vocabulary.units:
            text = "".join(units)
            if not 1 <= len(units) <= 3 or any(map(in_word, text)) or not _is_word(text):
                continue
            ends = (rhyme_kind(text),) if len(text) == 1 else (rhyme_kind(text[:-1]), rhyme_kind(text))
            if ends[-1] is not None:
                found.append((text, ends))
        return list(dict(found).items())


def _is_word(text: str) -> bool:
    return len(text) == 1 or text in phrases() or not _FUNCTION_CHARACTERS & set(text)
