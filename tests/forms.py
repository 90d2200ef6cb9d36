"""句式、藏头、照抄的上限守住了没有：`python tests/forms.py form|acrostic|copy --checkpoint 检查点`。

填词的 like、cipai 在 tunes.py。
用另一套读法查：注音表、字数、照抄的查找都不用 lyrics/ 里的。
"""

import functools
import random
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path[:0] = [str(Path(__file__).resolve().parent.parent)]

import tunes  # noqa: E402

import evaluate  # noqa: E402
import flags  # noqa: E402
from corpus.batches import IGNORED  # noqa: E402
from evaluate import BATCH, Evaluation  # noqa: E402
from flags import Flag  # noqa: E402
from lyrics.constraint import Vocabulary  # noqa: E402
from lyrics.copies import CopyIndex  # noqa: E402
from lyrics.form import Form, LyricsError, make_form  # noqa: E402
from lyrics.plan import SongPlan  # noqa: E402
from lyrics.sound import in_word, lines_of, normalise  # noqa: E402
from measures import (  # noqa: E402
    Columns,
    Metric,
    Row,
    mean,
    nats_of,
    perplexity,
    quantile,
    ratio,
    rows_of,
    table_of,
)
from terminal import UserError, run_script  # noqa: E402
from tokenizer import Tokenizer  # noqa: E402
from training.checkpoint import CheckpointError  # noqa: E402
from writing.drafts import Composer  # noqa: E402

FLAGS = [
    *(flag for flag in evaluate.FLAGS if flag.name not in ("only", "plot")),
    Flag("lines", 8, flags.whole(1, 1000), "form：写几行"),
    Flag("line_chars", "7", flags.text(), "form：每行几个字，同 inference.py"),
    Flag("rhyme", "auto", flags.text(), "form：none、auto 或一个辙名"),
    Flag("rhyme_scheme", "AABA", flags.text(), "form：韵式"),
    Flag("candidates", 8, flags.whole(2, 256), "form：每行几稿取一（只写一稿的也报）"),
    Flag("max_copy", 12, flags.whole(1, 1000), "copy：与语料连续相同不超过这么多字"),
]


def main(argv: Sequence[str]) -> int:
    part, *rest = argv or [""]
    if part in tunes.PARTS:
        return tunes.main(part, rest)
    if part not in PARTS:
        raise UserError(f"量什么：{' / '.join([*PARTS, *tunes.PARTS])}")
    given = flags.parse_flags(FLAGS, rest, f"tests/forms.py {part}", "句式、藏头、照抄的上限守住了没有。")
    options: dict[str, Any] = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    options |= {name: flags.rooted(options[name], name in given) for name in ("checkpoint", "copy_index")}
    evaluation = evaluate.load(options)
    rows = PARTS[part](evaluation)
    evaluate.print_table(rows)
    if options["json"] is not None:
        evaluate.write_json(options["json"], evaluation, rows)
    return 0


def compose(
    evaluation: Evaluation,
    form: Form,
    number: int,
    candidates: int = 1,
    copies: CopyIndex | None = None,
    max_copy: int = 0,
) -> str:
    """逐行写第 number 首；句式写不出来时为空。"""
    tokenizer, sampling = evaluation.tokenizer, evaluation.sampling(number)
    composer = Composer(
        evaluation.model,
        tokenizer.song(""),
        sampling,
        ends=[tokenizer.newline_id, tokenizer.eos_id],
        banned_ids=tokenizer.never_written,
        candidates=candidates,
        refused_ids=tokenizer.control_characters,
    )
    plan = SongPlan(form, vocabulary_of(tokenizer), tokenizer.encode, "", copies, max_copy)
    evaluation.display.progress(f"写第 {number + 1} 首")
    try:
        return "".join(plan.write(composer, None if form.given else sampling.max_tokens))
    except LyricsError as error:
        evaluation.display.line(f"第 {number + 1} 首没有写成：{error}")
        return ""


@functools.cache
def vocabulary_of(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary(tokenizer.token_bytes, tokenizer.newline_id, tokenizer.eos_id)


def text_nats(evaluation: Evaluation, texts: Sequence[str]) -> Columns:
    """不加约束的模型给每段文字的 nats 与 tokens：重新分词，含换行，不计歌的头与 `</s>`；超过上下文的分段。"""
    tokenizer, length = evaluation.tokenizer, evaluation.model.config.max_seq_len
    header = len(tokenizer.song(""))
    nats, tokens = np.zeros(len(texts)), np.zeros(len(texts))
    for first in range(0, len(texts), BATCH):
        owners, windows = [], []
        for owner in range(first, min(first + BATCH, len(texts))):
            ids = np.array(tokenizer.song(texts[owner]))
            targets = np.where(np.arange(1, len(ids)) < header, IGNORED, ids[1:])
            tokens[owner] = (targets != IGNORED).sum()
            for start in range(0, len(targets), length):
                owners.append(owner)
                windows.append((ids[:-1][start : start + length], targets[start : start + length]))
        longest = max(len(x) for x, _ in windows)
        x = np.stack([np.pad(x, (0, longest - len(x))) for x, _ in windows])  # 右边的补零不影响左边
        y = np.stack([np.pad(y, (0, longest - len(y)), constant_values=IGNORED) for _, y in windows])
        np.add.at(nats, owners, nats_of(evaluation.model, x, y))
    return {"nats": nats, "tokens": tokens}


# 韵母 → 辙，与 lyrics/sound.py 的表各写各的：这里查的正是那张表用得对不对。
FINALS = {
    final: name
    for name, *finals in map(
        str.split,
        "发花 a ia ua;梭坡 o e uo;乜斜 ie ve ê;一七 i v er;姑苏 u;怀来 ai uai;灰堆 ei uei;遥条 ao iao;油求 ou iou;"
        "言前 an ian uan van;人辰 en in uen vn;江阳 ang iang uang;中东 eng ing ueng ong iong".split(";"),
    )
    for final in finals
}


def final_class(line: str) -> str | None:
    """整行一起注音，末字的辙；不以汉字收尾时 None。"""
    import pypinyin

    written = re.sub(r"[\W_]+$", "", line)
    finals = pypinyin.lazy_pinyin(written, style=pypinyin.Style.FINALS, strict=True)
    return FINALS.get(finals[-1]) if written and written[-1] >= "\u3400" else None


def character_count(line: str) -> int:
    """字数：外文词与数目各算一个，其余的字各一个。"""
    return len(re.findall(r"[^\W_\u2e80-\U0010ffff]+|[^\W_]", line))


def rhymes_kept(lines: Sequence[str], scheme: str, rhyme: str) -> list[bool]:
    """每一行是否押得合乎韵式。

    同字母的各行同辙，不同字母不同辙；只出现一次的字母不必押，但不与别的字母同辙；X 不论。
    rhyme 为一个辙名时，第一个字母押的是它。
    """
    main_letter = scheme.lstrip("X")[:1]
    bound = {letter for letter in scheme if letter != "X" and (scheme.count(letter) > 1 or letter == main_letter)}
    classes = {main_letter: rhyme} if rhyme in FINALS.values() else {}
    kept = []
    for index, line in enumerate(lines):
        letter, found = scheme[index % len(scheme)], final_class(line)
        if letter in bound and found is not None:
            classes.setdefault(letter, found)
        others = {name for other, name in classes.items() if other != letter}
        in_place = found == classes.get(letter) and found is not None if letter in bound else True
        kept.append(letter == "X" or (in_place and found not in others))
    return kept


FORM_METRICS = [
    Metric("行数、行长合乎要求的行", ".2%", ratio("length_kept", "asked")),
    Metric("押韵合乎要求的行", ".2%", ratio("rhyme_kept", "asked")),
    Metric("困惑度（每词元，不加约束的模型）", ",.1f", perplexity),
]


def measure_form(evaluation: Evaluation) -> list[Row]:
    """句式写的歌，与同样抽样设置下自由写、截到同样行数的歌；两边都没有开头。"""
    o = evaluation.options
    form = make_form(o["lines"], o["line_chars"], o["rhyme"], o["rhyme_scheme"], "", None)
    free = [text for text, _ in evaluation.write("", o["songs"], 0)]
    sides = {"自由写": ["\n".join(lines_of(text)[: o["lines"]]) for text in free]}
    for candidates in (1, o["candidates"]):
        texts = [compose(evaluation, form, number, candidates) for number in range(o["songs"])]
        sides[f"{candidates} 稿"] = texts
    evaluation.written |= sides
    columns = {side: dict(text_nats(evaluation, texts)) for side, texts in sides.items()}
    for side, texts in list(sides.items())[1:]:
        measured = []
        for text in texts:
            lines = lines_of(text)[: o["lines"]] if text.count("\n") + 1 <= o["lines"] else []
            bounds = [form.lengths[index % len(form.lengths)] for index in range(len(lines))]
            lengths = [low <= character_count(line) <= high for line, (low, high) in zip(lines, bounds, strict=True)]
            kept = rhymes_kept(lines, form.scheme, form.rhyme)
            measured.append({"asked": o["lines"], "length_kept": sum(lengths), "rhyme_kept": sum(kept)})
        columns[side] |= table_of(measured)
    rows = rows_of(FORM_METRICS, columns)
    base = rows[-1].cells["自由写"][0]
    over = {side: (value / base, None, None) for side, (value, _, _) in rows[-1].cells.items()}
    return [*rows, Row("困惑度与自由写之比", ".3f", over)]


def draw_acrostics(evaluation: Evaluation) -> list[str]:
    """藏头的字：取自留出的歌的行，四到八个，都在词表里。"""
    draw = random.Random(evaluation.options["seed"])
    lines = {line for song in evaluation.held_out for line in song.text.split("\n")}
    usable = [
        [c for c in normalise(line) if not in_word(c) and c in vocabulary_of(evaluation.tokenizer).characters]
        for line in sorted(lines)
    ]
    usable = [line for line in usable if len(line) >= 4]
    if not usable:
        raise UserError("留出的歌里没有四个字以上的行，出不了藏头")
    drawn = []
    for _ in range(evaluation.options["songs"]):
        line = draw.choice(usable)
        drawn.append("".join(line[: draw.randint(4, 8)]))
    return drawn


def measure_acrostic(evaluation: Evaluation) -> list[Row]:
    """藏头诗：各行的第一个字连起来就是所要的字，行数也相同。"""
    acrostics = draw_acrostics(evaluation)
    exact = []
    for number, acrostic in enumerate(acrostics):
        text = compose(evaluation, make_form(None, None, "none", None, acrostic, None), number)
        evaluation.written.setdefault("acrostic", []).append(text)
        exact.append({"exact": "".join(line[0] for line in text.split("\n") if line) == acrostic})
    return rows_of([Metric("藏头分毫不差", ".1%", mean("exact"))], {"模型": table_of(exact)})


def copied_beyond(text: str, most: int, corpus: str) -> bool:
    """text 里有没有超过 most 个字连着出现在语料里：逐段用 `in` 找，不用索引。"""
    sung = normalise(text)
    return any(sung[start : start + most + 1] in corpus for start in range(len(sung) - most))


def measure_copy(evaluation: Evaluation) -> list[Row]:
    """限了照抄与没有限的各写 songs 首，没有开头；与整个语料（训练与留出）比。"""
    copies, most = evaluation.copies(), evaluation.options["max_copy"]
    corpus = "\0".join(normalise(song.text) for song in evaluation.train + evaluation.held_out)
    sides = {}
    for side, limit in (("不限", 0), (f"--max_copy {most}", most)):
        texts = [compose(evaluation, Form(), number, 1, copies, limit) for number in range(evaluation.options["songs"])]
        evaluation.written[side] = texts
        sides[side] = table_of(
            [
                {"beyond": copied_beyond(text, most, corpus), "copied": copies.longest(normalise(text)).length}
                for text in texts
            ]
        )
    return rows_of(
        [
            Metric(f"有超过 {most} 字与语料相同的歌", ".1%", mean("beyond")),
            Metric("最长的相同（字）：中位数", ".0f", quantile("copied", 0.5)),
            Metric("最长的相同（字）：最多", ".0f", quantile("copied", 1.0)),
        ],
        sides,
    )


PARTS = {"form": measure_form, "acrostic": measure_acrostic, "copy": measure_copy}


if __name__ == "__main__":
    run_script(main, UserError, CheckpointError, LyricsError)
