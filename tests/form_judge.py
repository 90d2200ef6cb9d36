"""写出来的歌合不合一个句式：与 lyrics/ 没有一行共用的另一套读法。

字数自己数，韵由 pypinyin 的韵母归类，平仄由 pypinyin 的声调，词由 jieba 切分，照抄逐段用 `in` 找。
python tests/form_judge.py：手标的停顿（tests/like/marked）有几成落在词与词之间；「停顿落在词间」一项到这里就是顶了。
"""

import functools
import itertools
import logging
import random
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import jieba
import pypinyin

LIKE = Path(__file__).resolve().parent / "like"
# 行末有两读、pypinyin 不总读得对的字，读哪个都算
SECOND_READINGS = dict(
    zip("了着地得还行嚼剥", ("o ao", "o ao", "i o", "o ei", "ai an", "eng ang", "ao ie", "o ao"), strict=True)
)
LOOSE = (2, 4, 6)  # 放宽时只管这几个字与末字

jieba.setLogLevel(logging.WARNING)


def sung(line: str) -> list[str]:
    """唱的字：汉字各一个，外文词与数目各一个，标点与空格不算。"""
    return re.findall(r"[^\W_\u2e80-\U0010ffff]+|[^\W_]", line)


def is_hanzi(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff" or "\U00020000" <= character <= "\U0003ffff"


def lengths_kept(lines: Sequence[str], wanted: Sequence[int]) -> list[bool]:
    """各行的字数；少写的行不合，多写的行也不合。"""
    pairs = itertools.zip_longest(lines, wanted)
    return [line is not None and count is not None and len(sung(line)) == count for line, count in pairs]


def class_of(final: str) -> str:
    """韵母 → 十三辙的一辙，以辙里最短的韵母为名。"""
    if final.endswith("ng"):
        return "ang" if "a" in final else "eng"
    if final.endswith("n"):
        return "an" if "a" in final else "en"
    if final in ("ie", "ve", "ê"):
        return "ie"
    core = re.sub(r"^[iuv](?=[aeo])", "", final)
    return {"e": "o", "v": "i", "er": "i"}.get(core, core)


def rhymes_of(line: str) -> set[str]:
    """末字押的辙，照这一行里的读法；儿化的、了着地得有两读的给两个，不以汉字收尾的没有。"""
    words = re.sub(r"[\W_]+$", "", line)
    if not words or not is_hanzi(words[-1]):
        return set()
    finals = pypinyin.lazy_pinyin(words, style=pypinyin.Style.FINALS, strict=True)
    found = {class_of(finals[-1])} | set(SECOND_READINGS.get(words[-1], "").split())
    if words[-1] in "儿兒" and len(words) > 1:
        found |= rhymes_of(words[:-1])
    return found


def rhymes_kept(lines: Sequence[str], letters: Sequence[str]) -> list[bool | None]:
    """每行押不押在它那一组（同字母的各行）最多的一辙上；没有字母的行是 None。"""
    found = [rhymes_of(line) for line in lines]
    kept: list[bool | None] = []
    for own, letter in zip(found, letters, strict=True):
        group = [classes for classes, other in zip(found, letters, strict=True) if other == letter]
        common = Counter(name for classes in group for name in sorted(classes)).most_common(1)
        kept.append(bool(common) and common[0][0] in own if letter else None)
    return kept


def tones_of(line: str) -> str:
    """每个唱的字是平是仄：一声、二声平，三声、四声仄，轻声「中」；不是汉字的也是「中」。"""
    tones = ""
    for run in re.findall(r"[^\W_\u2e80-\U0010ffff]+|[\u2e80-\U0010ffff]+", line):
        written = "".join(sung(run))
        if not is_hanzi(written[:1]):
            tones += "中" * len(sung(run))
            continue
        style = {"style": pypinyin.Style.TONE3, "neutral_tone_with_five": True}
        read = pypinyin.lazy_pinyin(written, errors=lambda text: ["?"] * len(text), **style)
        tones += "".join("平" if one[-1] in "12" else "仄" if one[-1] in "34" else "中" for one in read)
    return tones


def tones_kept(line: str, pattern: str, loose: bool = False) -> list[bool]:
    """谱上定了平仄的字合不合；loose 时只看第二、四、六与末字。字数不同的一个也不合。"""
    found = tones_of(line)
    places = [place for place, tone in enumerate(pattern, 1) if tone in "平仄"]
    if loose:
        places = [place for place in places if place in LOOSE or place == len(pattern)]
    if len(found) != len(pattern):
        return [False] * len(places)
    return [found[place - 1] in (pattern[place - 1], "中") for place in places]


def repeats_kept(lines: Sequence[str], names: Sequence[str]) -> list[bool | None]:
    """同一个名字的各行唱的字是否完全相同；没有名字的行是 None。"""
    first: dict[str, list[str]] = {}
    pairs = zip(lines, names, strict=True)
    return [first.setdefault(name, sung(line)) == sung(line) if name else None for line, name in pairs]


def places_of(breaks: str) -> list[int]:
    """`2-2-3`、`4，2-3` → 停顿之前各有几个字：[2, 4]、[4, 6]。"""
    return list(itertools.accumulate(int(count) for count in re.findall(r"\d+", breaks)))[:-1]


def marked_breaks(line: str) -> str:
    """空格标的停顿 → `2-2-3`。"""
    return "-".join(str(len(sung(part))) for part in line.split())


@functools.lru_cache(maxsize=65536)
def word_ends(line: str, new_words: bool = False) -> frozenset[int]:
    """jieba 切出的各词在第几个唱的字收尾；四字以上的词，两半都在词典里的，中间也算（一片|汪洋）。

    汉字之间的空格先去掉，不给切分程序提示。new_words 时让它猜词典里没有的词：猜出来的多半不是词
    （空船吃水压得低 → 水压、得低），手标的停顿也有 4% 被它当作切开了词，所以默认不猜。
    """
    ends, at = set(), 0
    for word in jieba.lcut(re.sub(r"(?<=[\u2e80-\U0010ffff])\s+|\s+(?=[\u2e80-\U0010ffff])", "", line), HMM=new_words):
        size = len(sung(word))
        halves = range(2, size - 1) if size == len(word) else ()
        ends |= {at + place for place in halves if jieba.dt.FREQ.get(word[:place]) and jieba.dt.FREQ.get(word[place:])}
        at += size
        ends.add(at)
    return frozenset(ends)


def breaks_kept(line: str, breaks: str, new_words: bool = False) -> list[bool]:
    """每个停顿是否落在词与词之间；写出来的标点处自然落在词间。"""
    ends = word_ends(line, new_words)
    return [place in ends for place in places_of(breaks)]


def copied_spans(text: str, template: str, size: int = 4) -> list[str]:
    """text 里连着 size 个唱的字、template 里也有的各段（跨行的也算）。"""
    own, other = sung(text), "\0".join(["", *sung(template), ""])
    spans = ["\0".join(["", *own[start : start + size], ""]) for start in range(len(own) - size + 1)]
    return [span.replace("\0", "") for span in dict.fromkeys(spans) if span in other]


def break_ceiling(lines: Sequence[str], new_words: bool) -> tuple[float, float]:
    """(手标的停顿落在词间的比例, 各行随便停同样多处的)。"""
    draw = random.Random(0)
    human, chance = [], []
    for line in lines:
        breaks, ends = marked_breaks(line), word_ends(line, new_words)
        human += breaks_kept(line, breaks, new_words)
        chance += [place in ends for place in draw.sample(range(1, len(sung(line))), len(places_of(breaks)))]
    return sum(human) / len(human), sum(chance) / len(chance)


def main() -> None:
    texts = [path.read_text(encoding="utf-8") for path in sorted((LIKE / "marked").glob("*.txt"))]
    lines = sorted({line for text in texts for line in text.split("\n") if " " in line})
    marks = sum(len(places_of(marked_breaks(line))) for line in lines)
    print(f"手标的停顿 {marks:,} 处（{len(texts)} 首，{len(lines):,} 行，重唱的只算一次）")
    for new_words, name in ((False, "只认词典里的词"), (True, "也猜词典里没有的词")):
        kept, lucky = break_ceiling(lines, new_words)
        print(f"{name}：落在词间 {kept:.1%}，随便停 {lucky:.1%}")
    for line in lines:
        if not all(breaks_kept(line, marked_breaks(line))):
            print(f"  {line}　jieba：{'/'.join(jieba.lcut(line.replace(' ', ''), HMM=False))}")


if __name__ == "__main__":
    main()
