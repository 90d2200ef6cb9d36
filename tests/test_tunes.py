"""照句式写：停顿、平仄、回来的词、韵、关键词、藏头一起守住；写不成的说是哪一行、哪一样。"""

import re
import time

import pypinyin
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import CONTROLS, SINGLES, make_vocabulary, reading, syllables

from generation import Sampling
from lyrics.form import Form, FormLine, LyricsError, make_form
from lyrics.notation import parse_form, pattern_form
from lyrics.plan import SongPlan
from lyrics.vocabulary import Vocabulary
from lyrics.words import may_pause, one_each, phrases
from model import GPT, ModelConfig
from writing.drafts import Composer

PIECES = "我们 月亮 月亮， 走路 慢慢 ，我 今夜 天空 故乡 风里 等你 看见 花开 一生 不再 love ， 。".split()
LEVELS = {"平": "12", "仄": "345"}
LIMIT_S = 10.0


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    singles = [character for character in SINGLES if character not in "着得了地"]  # 读法各家不一
    return make_vocabulary([*singles, *"空故乡风等开生不再今见", *PIECES, " ", " 我"])


@pytest.fixture(scope="module")
def model(words) -> GPT:
    torch.manual_seed(3)
    config = ModelConfig(vocab_size=len(words.texts), max_seq_len=256, n_layers=1, n_heads=2, n_embed=16)
    return GPT(config).eval().requires_grad_(False)


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
    return [vocabulary.texts.index(piece) for piece in re.findall("love|.|\n", text)]


def write(words: Vocabulary, model: GPT, form: Form, prompt: str = "", seed: int = 0, candidates: int = 1, **options):
    """写一首；写不成时 LyricsError。"""
    plan = SongPlan(form, words, lambda text: encode(words, text), prompt, **options)
    ends = [words.newline_id, words.eos_id]
    banned = [number for number in range(CONTROLS) if number != words.eos_id]
    sampling = Sampling(seed=seed, top_p=1.0)
    composer = Composer(model, [1], sampling, ends, banned, [words.newline_id], candidates)
    composer.feed(encode(words, prompt))
    return prompt + "".join(plan.write(composer))


def tones_kept(line: str, tones: str) -> bool:
    """整行一起注音，逐字比；外文词的地方只能是中。"""
    style = pypinyin.Style.TONE3
    one_each = re.sub("[a-z]+", "*", line)
    read = pypinyin.lazy_pinyin(one_each, style=style, neutral_tone_with_five=True, errors=lambda run: list(run))
    marks = [syllable[-1] for syllable in read if syllable not in "，。 "]
    assert len(marks) == len(tones)
    return all(tone == "中" or mark in LEVELS[tone] for tone, mark in zip(tones, marks, strict=True))


def shape_kept(line: str, wanted: FormLine) -> bool:
    """字数对；逗号恰在该有的地方；空格只在停顿处，两边都至少两个字；没有认得的词跨在停顿上。"""
    body = re.sub(r"[，。]$", "", line)
    commas = {len(syllables(body[: found.start()])) for found in re.finditer("，", body)}
    spaces = {len(syllables(body[: found.start()])) for found in re.finditer(" ", body)}
    ends = [0, *(place for place, _ in wanted.breaks), wanted.most]
    sizes = {b: min(b - a, c - b) for a, b, c in zip(ends, ends[1:], ends[2:], strict=False)}
    crossed = False
    for place in sizes:
        sung = "".join(unit if len(unit) == 1 else " " for unit in syllables(body))
        crossed |= any(
            sung[start:end] in phrases()
            for start in range(max(0, place - 3), place)
            for end in range(place + 1, min(start + 4, len(sung)) + 1)
        )
    return (
        wanted.least <= len(syllables(body)) <= wanted.most
        and (not wanted.breaks or commas == {place for place, kind in wanted.breaks if kind == "，"})
        and (not wanted.breaks or all(dict(wanted.breaks).get(place) == "-" and sizes[place] >= 2 for place in spaces))
        and not crossed
    )


def rhymes_kept(lines: list[str], form: Form) -> bool:
    groups: dict[str, set[str | None]] = {}
    for line, wanted in zip(lines, form.pattern, strict=True):
        if wanted.letter:
            groups.setdefault(wanted.letter, set()).add(reading(line))
    letters = [line.letter for line in form.pattern]
    return all(len(classes) == 1 for letter, classes in groups.items() if letters.count(letter) > 1)


def check(text: str, form: Form) -> None:
    lines = [line for line in text.split("\n") if line]
    assert len(lines) == form.lines
    for line, wanted in zip(lines, form.pattern, strict=True):
        assert shape_kept(line, wanted), (line, wanted)
        assert not wanted.tones or tones_kept(line, wanted.tones), (line, wanted)
    assert rhymes_kept(lines, form), lines
    marked = {}
    for line, wanted in zip(lines, form.pattern, strict=True):
        if wanted.mark:
            assert marked.setdefault(wanted.mark, line) == line
    assert [line[:1] for line in lines][: len(form.acrostic)] == [*form.acrostic]
    for word in form.keywords:
        assert text.count(word) >= 1, (word, text)
    sizes = [count for _, count in form.sections]
    assert [len(stanza.split("\n")) for stanza in text.strip("\n").split("\n\n")] == sizes


@pytest.mark.parametrize("seed", range(6))
def test_everything_at_once(words, model, seed):
    """停顿、逗号、平仄、换韵、回来的一行、关键词、藏头一起。"""
    form = parse_form(
        "主歌 | 2-2-3 | 中平中仄仄平平 | A | =a\n主歌 | 4，3 |  | B\n主歌 | 2-3 | 中中中中平 | A\n主歌 | 5 |  | B\n\n"
        "副歌 | 2-2-3 |  |  | =a\n副歌 | 3~5 |  | B"
    )
    form = Form(**{**form.__dict__, "keywords": ("月亮", "故乡"), "acrostic": "一"})
    check(write(words, model, form, seed=seed), form)


def test_several_drafts_keep_the_form_too(words, model):
    form = parse_form("| 2-2-3 | 中平中仄仄平平 | A\n| 2-2-3 |  | A")
    for seed in range(4):
        check(write(words, model, form, seed=seed, candidates=4), form)


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=3)


@st.composite
def tunes(draw) -> Form:
    """随便一份句式，加上藏头与关键词。"""
    lines = []
    for _ in range(draw(st.integers(1, 4))):
        sizes = draw(SIZES)
        ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
        kinds = draw(st.lists(st.sampled_from("--，"), min_size=len(sizes) - 1, max_size=len(sizes) - 1))
        tones = draw(st.one_of(st.just(""), st.text("平仄中", min_size=ends[-1], max_size=ends[-1])))
        rhyme, mark = draw(st.sampled_from(["", "", "A", "B"])), draw(st.sampled_from(["", "", "", "a"]))
        lines.append(FormLine(ends[-1], ends[-1], tuple(zip(ends, kinds, strict=False)), tones, rhyme, mark))
    first = next((line for line in lines if line.mark), None)
    lines = [first if line.mark else line for line in lines]
    form = pattern_form(lines, [("", len(lines))])
    acrostic = draw(st.sampled_from(["", "", "月", "一水"]))
    keywords = draw(st.sampled_from([(), (), ("月亮",), ("花", "故乡")]))
    return Form(**{**form.__dict__, "acrostic": acrostic[: len(lines)], "keywords": keywords})


@settings(max_examples=60, deadline=None)
@given(form=tunes(), seed=st.integers(0, 3), candidates=st.sampled_from([1, 1, 3]))
def test_any_form_is_met_or_refused_in_a_sentence(words, model, form, seed, candidates):
    """任意的句式：写成就样样守住，写不成就一句话说清，都在十秒之内。"""
    began, refusal = time.monotonic(), ""
    try:
        check(write(words, model, form, seed=seed, candidates=candidates), form)
    except LyricsError as error:
        refusal = str(error)
    assert not refusal or re.fullmatch(r"第 \d+ 行.+|关键词.+", refusal)
    assert time.monotonic() - began < LIMIT_S


def test_a_dead_end_is_backed_out_of(words, model):
    """只有一条路：行末要押的字只能接在一个词里，照样写得到。"""
    narrow = make_vocabulary(["月", "夜", "我", "山"])
    config = ModelConfig(vocab_size=len(narrow.texts), max_seq_len=64, n_layers=1, n_heads=2, n_embed=16)
    torch.manual_seed(0)
    tiny = GPT(config).eval().requires_grad_(False)
    for seed in range(8):
        form = parse_form("| 4 | 平仄仄平\n")
        (line,) = write(narrow, tiny, form, seed=seed).split("\n")
        assert line[0] == line[3] == "山"


@pytest.mark.parametrize(
    ("form", "options", "named"),
    [
        ("| 3 | 仄仄平", {"acrostic": "山"}, "第 1 行写不出来：.*藏头「山」；去掉 平仄 仄仄平 或 藏头「山」 就有"),
        ("| 2 | 仄仄 | A\n| 2 | 平平 | A", {"rhyme": "发花"}, "第 1 行写不出来：.*押发花辙"),
        ("| 3", {"keywords": ("月亮", "故乡")}, "放不下"),
        ("| 1-1", {"keywords": ("月亮",)}, "放不下"),
        ("| 2 | 平平", {"keywords": ("月亮",)}, "放不下"),
        ("| 3 | | | =a\n| 3 | | | =a", {"acrostic": "月山"}, "第 1 行与第 2 行"),
    ],
)
def test_what_cannot_be_met_is_said(words, model, form, options, named):
    """写不成：说哪一行、要的是什么、去掉哪一样就有。"""
    asked = parse_form(form)
    with pytest.raises(LyricsError, match=named):
        write(words, model, Form(**{**asked.__dict__, **options}))


def test_the_example_is_not_copied(words, model):
    """与样例连续相同的不到四个字，跨行也算。"""
    example = "月亮一生等你今夜故乡"
    form = Form(**{**parse_form("| 3\n| 3\n| 4").__dict__, "example": example})
    for seed in range(10):
        sung = re.sub(r"[^\w]", "", write(words, model, form, "月亮一\n", seed))
        assert not any(sung[start : start + 4] in example for start in range(len(sung) - 3))


def test_keywords_stand_once(words, model):
    """每个词恰好一次；写两遍的出现两次；开头里有了的不再写。"""
    for seed in range(6):
        form = make_form(5, "3-6", "none", None, "", None, keywords="花,月亮,花")
        text = write(words, model, form, seed=seed)
        assert (text.count("花"), text.count("月亮")) == (2, 1), text
        form = make_form(3, "4", "none", None, "", None, keywords="月亮")
        assert write(words, model, form, "月亮月月\n", seed=seed).count("月亮") == 1


def test_a_locked_line_decides_its_rhyme_and_its_twins(words, model):
    """定下的后面一行也定韵；与它同名的一行照它写。"""
    form = parse_form("| 3 | | A\n| 3 | | | =a\n| 2 | | A\n| 3 | | | =a")
    lines = write(words, model, form, fixed={2: "故乡", 3: "我们走"}).split("\n")
    assert reading(lines[0]) == "江阳"
    assert lines[1] == lines[3] == "我们走"


@pytest.mark.parametrize(
    ("before", "after", "size", "expected"),
    [
        ("今夜", "月亮", 2, False),  # 夜月也是词
        ("天", "空", 1, False),
        ("我们", "月亮", 2, True),
        ("看", "着花", 1, False),
        ("我们", "着急", 2, False),
        ("龘龘", "月亮", 2, False),
        ("龘的", "月亮", 2, True),
        ("月亮照", "山", 3, False),
        ("我", "月亮", 1, True),
        ("龘", "月亮", 1, False),
        ("love", "月亮", 1, True),
    ],
)
def test_where_a_line_may_pause(before, after, size, expected):
    """没有词跨在上面，前一截收在一个认得的词上。"""
    words = phrases() | {"月亮"}
    before = one_each(syllables(before))
    assert may_pause(before, after, words, size) == expected
