"""可唱的字与韵。"""

import functools
import itertools
import re
from typing import Any


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


def sung_places(text: str) -> list[int]:
    """`normalise` 留下的各字在 text 里的位置。"""
    return [place for place, character in enumerate(text) if normalise(character)]


def sung_units(text: str) -> list[str]:
    """可唱的字：汉字各一个，一个外文词或数目整个算一个；个数就是 `sung_count`。"""
    units: list[str] = []
    after_word = False
    for character in text:
        word = in_word(character)
        if word and after_word:
            units[-1] += character
        elif character.isalnum():
            units.append(character)
        after_word = word
    return units


def lines_of(text: str) -> list[str]:
    """歌词的各行，不含空行。"""
    return [line for line in text.split("\n") if line.strip()]


def place_of(text: str, number: int) -> int:
    """第 number 行（从 1 起，空行不算）在 `text.split("\\n")` 里的序号。"""
    return [place for place, line in enumerate(text.split("\n")) if line.strip()][number - 1]


def stanzas_of(text: str) -> tuple[tuple[str, int], ...]:
    """各节的（序号，行数），节之间是空行；不分节的是空的。"""
    sizes = [len(lines_of(stanza)) for stanza in re.split(r"\n\s*\n", text)]
    sizes = [size for size in sizes if size]
    return tuple((str(number), size) for number, size in enumerate(sizes, 1)) if len(sizes) > 1 else ()


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

_LAST_RUN = re.compile(r"([^\W\d_]+)[\W_]*$")  # 行末的一串文字

# 多音字的繁体写法：pypinyin 的词组是简体
_SIMPLER = str.maketrans(
    "遊樂覺說沒還兒長調種為強勁應處數難幾當稱盡藏乾縫間載號傳彈轉鮮興奧惡",
    "游乐觉说没还儿长调种为强劲应处数难几当称尽藏干缝间载号传弹转鲜兴奥恶",
)


def simpler(text: str) -> str:
    return text.translate(_SIMPLER).replace("干坤", "乾坤")


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
    words = simpler(run[1])
    if words.endswith("著") and not _ZHU.search(words):
        words = words[:-1] + "着"
    if words.endswith("儿") and not _SYLLABLE_ER.search(words):
        return rhyme_class(words[:-1])  # 儿化随前一个字：花儿押发花
    for pattern, name in _READINGS:
        if pattern.search(words):
            return name
    return class_as_written(words)


def class_as_written(words: str) -> str | None:
    """pypinyin 怎么读末字，就是哪一辙：不换成简体，也不改它读错的。"""
    *_, last = _cut(words)
    return _final_class(last)


def _cut(words: str) -> list[str]:
    """pypinyin 注音时切出的词：一词一词地记着读音，比整行重注快几倍。"""
    from pypinyin.contrib.mmseg import seg

    return list(seg.cut(words))


@functools.lru_cache(maxsize=65536)
def _final_class(word: str) -> str | None:
    pypinyin = _pypinyin()
    finals = pypinyin.lazy_pinyin(word, style=pypinyin.Style.FINALS, strict=True)
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
    for form in {character, simpler(character)}:
        readings = pypinyin.pinyin(form, style=pypinyin.Style.FINALS, strict=True, heteronym=True)
        found |= {_CLASS_OF_FINAL.get(final) for final in readings[0]} if readings else set()
    found |= {"地": {"梭坡"}, "著": {"梭坡", "遥条"}}.get(character, set())
    return frozenset(found - {None}) or frozenset({None})


# 日常就有几种读音、几种读音不同辙的字；生僻的读音（月、说）不算
_UNSURE = frozenset("了着著还還行得地的乐樂觉覺没沒都落和色称稱石强強劲勁重")


def readings_of(line: str) -> list[str]:
    """一行末字可以读作哪几辙：照上下文的在前；只有一种的、不以汉字收尾的是空的。"""
    run = _LAST_RUN.search(line)
    last = run[1][-1] if run else ""
    if last not in _UNSURE:
        return []
    first = rhyme_class(line)
    names = [name for name in RHYME_CLASSES if name in possible_classes(last) and name != first]
    return [first, *names] if first and names else []


LEVEL, OBLIQUE = 1, 2  # 平：阴平、阳平；仄：上声、去声与轻声


@functools.lru_cache(maxsize=65536)
def tones_of(line: str) -> tuple[int, ...]:
    """每个可唱的字在这一行里是平（LEVEL）还是仄（OBLIQUE），多音字照上下文；外文词与没有读音的字是 0。"""
    tones: list[int] = []
    for run in re.findall(r"[^\W_]+", line):
        for foreign, characters in itertools.groupby(run, in_word):
            if foreign:
                tones.append(0)
            else:
                tones += tones_as_written(simpler("".join(characters)))
    return tuple(tones)


def tones_as_written(run: str) -> list[int]:
    """一串汉字照 pypinyin 读的平仄，不换成简体；没有读音的字是 0。"""
    return [tone for word in _cut(run) for tone in _word_tones(word)]


@functools.lru_cache(maxsize=65536)
def _word_tones(word: str) -> tuple[int, ...]:
    pypinyin = _pypinyin()
    style = {"style": pypinyin.Style.TONE3, "neutral_tone_with_five": True}
    return tuple(map(_tone, pypinyin.lazy_pinyin(word, errors=lambda missing: list(missing), **style)))


def _tone(syllable: str) -> int:
    return {"1": LEVEL, "2": LEVEL, "3": OBLIQUE, "4": OBLIQUE, "5": OBLIQUE}.get(syllable[-1], 0)


@functools.lru_cache(maxsize=65536)
def possible_endings(character: str) -> frozenset[tuple[str | None, int]]:
    """一个字各种读音的（辙，平仄）；没有读音的与外文是 {(None, 0)}。"""
    if in_word(character):
        return frozenset({(None, 0)})
    pypinyin = _pypinyin()
    found: set[tuple[str | None, int]] = set()
    for form in {character, simpler(character)}:
        style = pypinyin.Style.FINALS_TONE3
        readings = pypinyin.pinyin(form, style=style, strict=True, heteronym=True, neutral_tone_with_five=True)
        for final in readings[0] if readings else ():
            if name := _CLASS_OF_FINAL.get(final[:-1]):
                found.add((name, _tone(final)))
    tones = {tone for _, tone in found}
    if character in "儿兒地著":  # 辙由 `rhyme_class` 另定，平仄照读音
        found |= {(name, tone) for name in possible_classes(character) for tone in tones}
    return frozenset(found) or frozenset({(None, 0)})
