"""真词合不合 lyrics/cipai.txt 里的句式：`python tests/cipai_fit.py 语料的文件夹 [词牌…]`，印一张 Markdown 表。

语料照训练时的样子读（清洗、去重）。一首真词与一体按句相合，是每句（到。？！为止）的字数依次相同，句里的逗号只是停顿。
「三体的顶」是语料里最多的三种断句法一共占几成：三体至多合到这里。韵与平仄用今音读，古音合的也有读不合的。
"""

import itertools
import re
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests")]

import form_judge as judge  # noqa: E402

from corpus.cleaning import Song  # noqa: E402
from corpus.files import find_files  # noqa: E402
from corpus.songs import distinct_songs  # noqa: E402

PATTERNS = REPOSITORY / "lyrics" / "cipai.txt"
# 曲的宫调：同名的曲不是词
MODES = set("双调 越调 中吕 仙吕 南吕 黄钟 正宫 商调 大石调 小石调 般涉调 商角调 高平调 道宫 仙吕入双调".split())
OTHERS = {"庆宫春", "庆春宫", "怨王孙", "渔歌"}  # 《全宋词》归在同名之下、其实是别的调

Work = list[list[str]]  # 一首：各句，句里逗号之间的各段


class Line(NamedTuple):
    clauses: tuple[int, ...]  # 逗号之间各几个字
    tones: str
    letter: str


class Form(NamedTuple):
    name: str
    label: str
    aliases: list[str]
    lines: list[Line]

    @property
    def sentences(self) -> list[int]:
        return [sum(line.clauses) for line in self.lines]

    @property
    def clauses(self) -> list[int]:
        return [count for line in self.lines for count in line.clauses]


def read_forms(path: Path = PATTERNS) -> list[Form]:
    forms: list[Form] = []
    for text in path.read_text(encoding="utf-8").splitlines():
        if text.startswith("《"):
            title, *notes = text.split(" | ")
            aliases = [alias for note in notes if note.startswith("又名：") for alias in note[3:].split()]
            forms.append(Form(*title[1:].split("》 "), aliases, []))
        elif text.startswith("|"):
            lengths, tones, letter, _ = (*text[2:].split(" | "), "", "")[:4]
            counts = (sum(map(int, re.findall(r"\d+", clause))) for clause in lengths.split("，"))
            forms[-1].lines.append(Line(tuple(counts), tones, letter))
    return forms


def sentences_of(text: str) -> Work:
    """每句的各段（逗号之间）；顿号不算断开，分号、冒号当句号、逗号，夹注去掉。"""
    text = re.sub(r"\([^()]*\)|（[^（）]*）|〔[^〔〕]*〕", "", text.replace("\n", ""))
    text = text.replace("；", "。").replace("：", "，").replace("?", "？").replace(",", "，")
    sentences = [[re.sub(r"[^\w□]", "", part) for part in one.split("，")] for one in re.split("[。？！]", text)]
    return [[part for part in one if part] for one in sentences if any(one)]


def works_by_name(songs: Sequence[Song]) -> dict[str, list[Work]]:
    """词牌 → 各首的句；「江神子・江城子」两个名字下都有。杂剧、戏文、套数不要。"""
    seconds = defaultdict(set)
    for song in songs:
        first, *rest = song.name.split("・")
        seconds[first] |= set(rest[:1])
    works = defaultdict(list)
    for song in songs:
        if "/" in song.name or "《" in song.singer:
            continue
        parts = re.split("[・·]", song.name)
        play = parts[0] in MODES or len(seconds[parts[0]]) > 3 or len(parts[0]) > 6
        if parts[0] in OTHERS or ("・" in song.name and play):
            continue
        for name in {part.split(" ")[0] for part in parts}:
            works[name].append(sentences_of(song.text))
    return works


class Fit(NamedTuple):
    sentences: bool  # 每句的字数依次相同
    clauses: bool  # 不论句读，每段（逗号之间）的字数依次相同
    finer: bool  # 谱的逗号处多断了句


def fit(form: Form, work: Work) -> Fit:
    sentences = [sum(map(len, parts)) for parts in work]
    clauses = [len(part) for parts in work for part in parts]
    ends, commas = set(itertools.accumulate(form.sentences)), set(itertools.accumulate(form.clauses))
    finer = ends <= set(itertools.accumulate(sentences)) <= commas
    return Fit(sentences == form.sentences, clauses == form.clauses, finer)


def agreement(form: Form, work: Work) -> Counter[str]:
    """相合的一首里，韵脚押不押、平仄对不对，各数几处；读音是今音。"""
    body = "".join(part for parts in work for part in parts)
    ends = itertools.accumulate(form.sentences)
    lines = [body[end - count : end] for end, count in zip(ends, form.sentences, strict=True)]
    rhymed = [kept for kept in judge.rhymes_kept(lines, [line.letter for line in form.lines]) if kept is not None]
    pairs = zip(lines, form.lines, strict=True)
    toned = [kept for line, wanted in pairs for kept in judge.tones_kept(line, wanted.tones)]
    return Counter(feet=len(rhymed), rhymed=sum(rhymed), tones=len(toned), level=sum(toned))


def sort_out(forms: Sequence[Form], works: Sequence[Work]) -> tuple[Counter[str], list[int]]:
    """(各项的数, 各体的作品数)；不到一半长的残篇不算。几体的句一样长时，归平仄最合的一体。"""
    shortest = min(sum(form.sentences) for form in forms)
    whole = [work for work in works if 2 * sum(len(part) for parts in work for part in parts) >= shortest]
    shapes = Counter(tuple(sum(map(len, parts)) for parts in work) for work in whole)
    counts = Counter(count=len(whole), common=sum(count for _, count in shapes.most_common(3)))
    each = [0] * len(forms)
    for work in whole:
        fits = [fit(form, work) for form in forms]
        found = [any(one.sentences for one in fits), any(one.clauses for one in fits), any(one.finer for one in fits)]
        counts += Counter(exact=found[0], either=any(found[:2]), wide=any(found))
        places = [place for place, one in enumerate(fits) if one.sentences]
        places = [place for place in places if fits[place].clauses] or places
        kept = {place: agreement(forms[place], work) for place in places}
        if kept:
            best = max(kept, key=lambda place: kept[place]["level"] / kept[place]["tones"])
            each[best] += 1
            counts += kept[best]
    return counts, each


def share(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def table(forms: Sequence[Form], works: dict[str, list[Work]]) -> Iterator[str]:
    yield "| 词牌 | 作品 | 按句合 | 或逐段合 | 或逗号处多断 | 三体的顶 | 各体 | 韵脚同辙（今音） | 平仄合（今音） |"
    yield "|---|--:|--:|--:|--:|--:|---|--:|--:|"
    total: Counter[str] = Counter()
    for name, group in itertools.groupby(forms, lambda form: form.name):
        own = list(group)
        found = [work for title in {name, *own[0].aliases} for work in works.get(title, [])]
        counts, each = sort_out(own, list({str(work): work for work in found}.values()))
        total += counts
        yield row(name, counts, "+".join(map(str, each)))
    yield row("合计", total, "")


def row(name: str, counts: Counter[str], each: str) -> str:
    cells = [share(counts[key], counts["count"]) for key in ("exact", "either", "wide", "common")]
    cells += [each, share(counts["rhymed"], counts["feet"]), share(counts["level"], counts["tones"])]
    return f"| {name} | {counts['count']:,} | {' | '.join(cells)} |"


def main(argv: Sequence[str]) -> None:
    if not argv:
        sys.exit("用法：python tests/cipai_fit.py 语料的文件夹 [词牌…]")
    folder, *names = argv
    found = find_files(Path(folder))
    songs, _, _ = distinct_songs(Path(folder), found.files, {}, lambda _: None, lambda _: None)
    forms = [form for form in read_forms() if not names or form.name in names]
    for line in table(forms, works_by_name(songs)):
        print(line, flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
