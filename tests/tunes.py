"""填词守不守得住：`python tests/forms.py like`、`python tests/forms.py cipai`（--help 列出参数）。

字数、韵、平仄、词界、照抄都由 form_judge 查，它与 lyrics/ 没有一行共用。每一项都写明有几首样子里有这一样。
"""

import dataclasses
import math
import re
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import form_judge as judge

import flags
from flags import REPOSITORY, Flag
from lyrics.cipai import all_cipai
from lyrics.form import Form, LyricsError
from writing.loading import READY, load_writer
from writing.settings import SONG_FLAGS, Settings
from writing.writer import Writer

FLAGS = [
    Flag("checkpoint", REPOSITORY / READY, flags.path(), "检查点"),
    Flag("lyrics_dir", None, flags.path(optional=True), "like：真词所在的文件夹；留出的五十首也作样子"),
    Flag("dtype", "int8", flags.text(), "精度"),
    Flag("songs", 10, flags.whole(1, 1000), "cipai：每体写几首"),
    Flag("candidates", 1, flags.whole(1, 256), "每行几稿"),
    Flag("out", None, flags.path(optional=True), "写出的歌存在这里"),
]
DEFAULTS = Settings(**{flag.name: flag.default for flag in SONG_FLAGS})
CI = 50  # 从真词里取几首作样子
LIKE = Path(__file__).parent / "like"


class Template(NamedTuple):
    """一个样子：哪一类、什么名字、它的文字。"""

    kind: str
    name: str
    text: str


class Tally:
    """各项：合了几处，一共几处，有这一样的样子有几首。"""

    def __init__(self) -> None:
        self.kept: dict[str, list[bool]] = {}
        self.songs: dict[str, int] = {}

    def add(self, name: str, found: Sequence[bool | None]) -> None:
        real = [each for each in found if each is not None]
        self.kept.setdefault(name, []).extend(real)
        self.songs[name] = self.songs.get(name, 0) + bool(real)

    def lines(self) -> list[str]:
        table = ["| 什么 | 合的 | 几处 | 几首里有 |", "| --- | --- | --- | --- |"]
        for name, kept in self.kept.items():
            share = f"{sum(kept) / len(kept):.2%}" if kept else "–"
            table.append(f"| {name} | {share} | {len(kept):,} | {self.songs[name]} |")
        return table


def lines_of(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip()]


def templates(lyrics_dir: Path | None) -> list[Template]:
    """手标停顿的与原样的歌，再加留出的词。"""
    found = []
    for kind in ("marked", "plain"):
        for path in sorted((LIKE / kind).glob("*.txt")):
            found.append(Template(kind, path.stem, path.read_text(encoding="utf-8").strip()))
    return found + (held_out_ci(lyrics_dir) if lyrics_dir else [])


def held_out_ci(folder: Path) -> list[Template]:
    """留出的真词，三十到一百一十字，按次序取 `CI` 首。"""
    from corpus.files import find_files
    from corpus.songs import distinct_songs, split_songs

    songs, keys, _ = distinct_songs(
        folder, find_files(folder, ()).files, {}, lambda message: None, lambda message: None
    )
    _, held_out, _ = split_songs(keys, 0.05)
    names = {form.name for form in all_cipai()}
    usable = [songs[index] for index in held_out if re.split(r"[·・\s（(]", songs[index].name)[0] in names]
    usable = [song for song in usable if 30 <= len(judge.sung(song.text)) <= 110]
    return [Template("ci", song.name, song.text) for song in usable[:CI]]


def write(writer: Writer, seed: int, **changes: Any) -> tuple[str, Form]:
    """（歌，它的句式）；写不出来时 LyricsError。"""
    settings = dataclasses.replace(DEFAULTS, max_tokens=None, **changes)
    return writer.write("", settings, seed, lambda text: None)[0].text, settings.form()


def measure_like(options: dict[str, Any]) -> str:
    """各个样子写一首。"""
    writer = load_writer(options["checkpoint"], "cpu", options["dtype"], "auto").writer
    tallies: dict[str, Tally] = {}
    ratios, failed, written = [], [], []
    with tempfile.TemporaryDirectory() as place:
        for seed, template in enumerate(templates(options["lyrics_dir"]), 1):
            path = Path(place) / "样子.txt"
            path.write_text(template.text, encoding="utf-8")
            began = time.perf_counter()
            try:
                song, form = write(writer, seed, like=path, candidates=options["candidates"])
            except LyricsError as error:
                failed.append(f"{template.kind}/{template.name}：{error}")
                continue
            seconds = time.perf_counter() - began
            wanted = [len(judge.sung(line)) for line in lines_of(template.text)]
            began = time.perf_counter()
            write(writer, seed, lines=len(wanted), line_chars=",".join(map(str, wanted)))
            ratios.append(seconds / (time.perf_counter() - began))
            judge_like(tallies.setdefault(template.kind, Tally()), template.text, song, form)
            written.append(f"# {template.kind}/{template.name}\n\n{song}\n")
    if options["out"] is not None:
        options["out"].write_text("\n".join(written), encoding="utf-8")
    names = {"marked": "手标停顿的歌", "plain": "原样的歌", "ci": "真词"}
    parts = [f"**{names[kind]}**\n\n" + "\n".join(tally.lines()) for kind, tally in tallies.items()]
    speed = f"用时是只定行长的 {statistics.median(ratios):.2f} 倍（中位数，{len(ratios)} 首）"
    return "\n\n".join([*parts, speed, *(f"没有写成：{line}" for line in failed)])


def judge_like(tally: Tally, template: str, song: str, form: Form) -> None:
    """样子里有的，写出的歌里也要有。"""
    sample, lines = lines_of(template), lines_of(song)
    tally.add("字数", judge.lengths_kept(lines, [len(judge.sung(line)) for line in sample]))
    if len(lines) != len(sample):
        return
    tally.add("韵", judge.rhymes_kept(lines, [line.letter for line in form.pattern]))
    names = [" ".join(judge.sung(line)) for line in sample]
    tally.add("回来的行", judge.repeats_kept(lines, [name if names.count(name) > 1 else "" for name in names]))
    marked = [re.sub(r"[^\w ]+", " ", line) for line in sample]
    breaks = [judge.marked_breaks(line) for line in marked]
    distinct = {line: place for place, line in enumerate(lines)}  # 重唱的只算一次
    tally.add(
        "停顿在词间", [kept for line, place in distinct.items() for kept in judge.breaks_kept(line, breaks[place])]
    )
    tally.add("没有连着四个字与样子相同", [not judge.copied_spans(song, template)])
    stanzas = [[len(lines_of(part)) for part in re.split(r"\n\s*\n", text.strip())] for text in (template, song)]
    tally.add("分节", [stanzas[0] == stanzas[1]])


def measure_cipai(options: dict[str, Any]) -> str:
    """每体写几首。"""
    writer = load_writer(options["checkpoint"], "cpu", options["dtype"], "auto").writer
    tally, failed, written, done, numbers = Tally(), [], [], 0, dict[str, int]()
    for form in all_cipai():
        numbers[form.name] = number = numbers.get(form.name, 0) + 1
        for seed in range(1, options["songs"] + 1):
            try:
                wanted = f"{form.name}{number}"
                song, pattern = write(writer, seed, cipai=wanted, candidates=options["candidates"])
            except LyricsError as error:
                failed.append(f"{form.name}{number}，种子 {seed}：{error}")
                continue
            done += 1
            judge_cipai(tally, song, pattern)
            written.append(f"# {form.name}{number}\n\n{song}\n")
    if options["out"] is not None:
        options["out"].write_text("\n".join(written), encoding="utf-8")
    total = done + len(failed)
    told = f"{len(numbers)} 个词牌、{len(all_cipai())} 体，写成 {done} / {total} 首（{done / total:.1%}）"
    lines = [*tally.lines(), "", *perplexities(writer), *(f"没有写成：{line}" for line in failed[:10])]
    return "\n".join([told, "", *lines])


def perplexities(writer: Writer) -> list[str]:
    """每体一首（种子 1），不加约束的模型读它的困惑度：守词牌的、只定行长的、自由写的。"""
    from forms import text_nats

    sides: dict[str, list[str]] = {}
    numbers: dict[str, int] = {}
    for form in all_cipai():
        numbers[form.name] = number = numbers.get(form.name, 0) + 1
        lengths = ",".join(str(line.most) for line in form.form.pattern)
        alone = {"lines": len(form.form.pattern), "line_chars": lengths}
        ways = {f"词牌，{count} 稿": {"cipai": f"{form.name}{number}", "candidates": count} for count in (1, 8)}
        ways |= {f"只定行长，{count} 稿": alone | {"candidates": count} for count in (1, 8)}
        for name, changes in ways.items():
            sides.setdefault(name, []).append(write(writer, 1, **changes)[0])
        free = dataclasses.replace(DEFAULTS, max_tokens=sum(line.most for line in form.form.pattern))
        sides.setdefault("自由写", []).append(
            writer.write("", free, 1 + len(sides["词牌，1 稿"]), lambda text: None)[0].text
        )
    table = ["| 怎样写的 | 困惑度（每词元） |", "| --- | --- |"]
    for name, texts in sides.items():
        found = text_nats(writer, texts)  # type: ignore[arg-type]  # 只用到 model 与 tokenizer
        table.append(f"| {name} | {math.exp(found['nats'].sum() / found['tokens'].sum()):.1f} |")
    return table


def judge_cipai(tally: Tally, song: str, form: Form) -> None:
    lines = lines_of(song)
    tally.add("字数", judge.lengths_kept(lines, [line.most for line in form.pattern]))
    if len(lines) != len(form.pattern):
        return
    pairs = list(zip(lines, form.pattern, strict=True))
    tally.add("平仄", [kept for line, wanted in pairs for kept in judge.tones_kept(line, wanted.tones) if wanted.tones])
    tally.add("韵", judge.rhymes_kept(lines, [line.letter for line in form.pattern]))
    tally.add("叠句", judge.repeats_kept(lines, [line.mark for line in form.pattern]))


PARTS = {"like": measure_like, "cipai": measure_cipai}


def main(part: str, argv: Sequence[str]) -> int:
    given = flags.parse_flags(FLAGS, argv, f"tests/forms.py {part}", "填词守不守得住。")
    print(PARTS[part]({flag.name: given.get(flag.name, flag.default) for flag in FLAGS}))
    return 0
