"""可唱的字、韵、句式与整首歌的计划：与另写的判断对照。"""

import csv
import dataclasses
import itertools
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import pypinyin
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import lyrics
from lyrics import (
    ANY_LINE,
    RHYME_CLASSES,
    CopyIndex,
    Form,
    LineConstraint,
    LineRule,
    LyricsError,
    SongPlan,
    Vocabulary,
    make_form,
    possible_classes,
    rhyme_class,
    sung_count,
)

CLASS_OF_FINAL = {final: name for name, finals in RHYME_CLASSES.items() for final in finals.split()}
WORD = r"[^\W_\u2e80-\uff0f\uff5b-\U0010ffff]+"  # 一个外文词或数目

# ---- 另写的判断 ----


def syllables(line: str) -> list[str]:
    """可唱的字：汉字各一个，外文词整个算一个。"""
    return re.findall(rf"{WORD}|[^\W_]", line)


def is_tidy(line: str) -> bool:
    """字与字之间至多一个空格，行末至多一个标点，此外什么都没有。"""
    return re.fullmatch(r"([^\W_]+( [^\W_]+)*)?[，。、；：！？…—,.;:!?]?", line) is not None


def reading(line: str) -> str | None:
    """末字在这一行里的辙；末字不是汉字时 None。"""
    sung = syllables(line)
    if not sung or re.fullmatch(WORD, sung[-1]):
        return None
    run = re.search(r"[\u2e80-\U0010ffff]+(?=[\W_]*$)", line)[0]
    run = re.sub(r"[\W\d_]+$", "", run)
    if re.search(r"(.)\1地$", run):
        return "梭坡"
    return CLASS_OF_FINAL.get(pypinyin.pinyin(run, style=pypinyin.Style.FINALS)[-1][0])


def satisfies(line: str, rule: LineRule, start: str = "") -> bool:
    """一行写完的文字合不合规矩。"""
    tail = line[len(start) :]
    return (
        line.startswith(start)
        and rule.least <= len(syllables(line)) <= rule.most
        and (rule.rhymes is None or reading(line) in rule.rhymes)
        and (bool(start) or line.startswith(rule.first))
        and len((line + "|").splitlines()) == 1
        and (not rule.tidy or is_tidy(line if not start else re.sub(r"^ ", "", tail)))
        and (not rule.tidy or not re.search(r"[^\w] ", line))
    )


# ---- 可唱的字 ----


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("今夜我", 3),
        ("今夜，我！", 3),
        ("今 夜\n我\t", 3),
        ("love", 1),
        ("I love you", 3),
        ("我love你", 3),
        ("love我love", 3),
        ("1999年", 2),
        ("3.14", 2),
        ("２０２４年", 2),
        ("don't", 2),
        ("a_b", 2),
        ("𠮷野家", 3),
        ("😀我😀", 1),
        ("…—（）《》♪～", 0),
        ("サヨナラ", 4),
        ("안녕", 2),
        ("café", 1),
        ("привет мир", 2),
        ("〇", 1),
    ],
)
def test_sung_count(text, count):
    """汉字、假名、谚文各一个，外文词与数目各一个，标点、空格、符号不算。"""
    assert sung_count(text) == count
    assert len(syllables(text)) == count


@pytest.mark.parametrize(("text", "count"), [("ly", 0), ("ly我", 1), (" ly", 1), ("", 0), ("我ly", 2), ("20", 0)])
def test_sung_count_continues_a_word(text, count):
    """接在外文词后面的字母还是那个词的；隔了空格或汉字就是新的。"""
    assert sung_count(text, after_word=True) == count


@given(st.lists(st.sampled_from(["我", "月", "a", "bc", "2", " ", "，", "ー", "é", "_", "𠮷"]), max_size=10))
def test_sung_count_adds_up_over_pieces(pieces):
    """一段一段地数，等于整段数。"""
    total, after = 0, False
    for piece in pieces:
        total += sung_count(piece, after)
        after = lyrics.in_word(piece[-1])
    assert total == sung_count("".join(pieces)) == len(syllables("".join(pieces)))


def test_a_stray_surrogate_is_not_sung():
    """编码坏了的字不算，也不出错。"""
    assert sung_count("我\ud83d") == 1
    assert rhyme_class("我\ud83d") == "梭坡"


# ---- 韵 ----


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("了断", "言前"),
        ("走了", "梭坡"),
        ("没完没了", "遥条"),
        ("银行", "江阳"),
        ("行走", "油求"),
        ("可行", "中东"),
        ("重新", "人辰"),
        ("山重", "中东"),
        ("重量", "江阳"),
        ("觉得", "梭坡"),
        ("慢慢地", "梭坡"),
        ("风轻轻地", "梭坡"),
        ("天地", "一七"),
        ("睡着", "遥条"),
        ("看着", "梭坡"),
        ("成长", "江阳"),
        ("女儿", "一七"),
        ("知", "一七"),
        ("绿", "一七"),
        ("月", "乜斜"),
        ("雨", "一七"),
        ("路", "姑苏"),
        ("贵", "灰堆"),
        ("怀", "怀来"),
        ("刘", "油求"),
        ("云", "人辰"),
        ("翁", "中东"),
        ("兄", "中东"),
        ("元", "言前"),
        ("月亮！", "江阳"),
        ("月亮 。」", "江阳"),
        ("（月亮）", "江阳"),
        ("我说 love月", "乜斜"),
        ("I love you", None),
        ("我爱Sunshine", None),
        ("唱到1999", None),
        ("月2", None),
        ("サヨナラ", None),
        ("，", None),
        ("", None),
    ],
)
def test_rhyme_class_in_context(line, name):
    """末字照这一行里的读法；标点不论；不以汉字收尾的没有。"""
    assert rhyme_class(line) == name


@pytest.mark.parametrize("line", ["我a", "oh la a", "ai", "我想 i", "o", "u", "er", "an"])
def test_latin_letters_that_look_like_finals_have_no_rhyme(line):
    """外文词即使写得像韵母，也不是汉字。"""
    assert rhyme_class(line) is None


def test_thirteen_classes():
    """十三辙，每个韵母只属于一辙。"""
    finals = [final for names in RHYME_CLASSES.values() for final in names.split()]
    assert len(RHYME_CLASSES) == 13
    assert len(finals) == len(set(finals))


def gb2312() -> list[str]:
    """GB 2312 的 6,763 个汉字。"""
    found = []
    for high, low in itertools.product(range(0xB0, 0xF8), range(0xA1, 0xFF)):
        found.append(bytes([high, low]).decode("gb2312", "ignore"))
    return [character for character in found if character]


def test_every_final_of_every_common_character_belongs_to_a_class():
    """6,763 个汉字的每一种读音都有所属的辙（只有「嗯」这样没有韵母的音节除外），单独的读法在可能的之中。"""
    characters = gb2312()
    assert len(characters) == 6763
    for character in characters:
        finals = pypinyin.pinyin(character, style=pypinyin.Style.FINALS, heteronym=True)[0]
        expected = {CLASS_OF_FINAL[final] for final in finals if final} | ({"梭坡"} if character == "地" else set())
        expected = set(RHYME_CLASSES) if character == "儿" else expected  # 儿化随前一个字
        assert possible_classes(character) == (expected or {None}), character
        assert rhyme_class(character) in possible_classes(character), character


@pytest.mark.parametrize(
    ("character", "names"),
    [("了", {"遥条", "梭坡"}), ("行", {"中东", "江阳"}), ("地", {"一七", "梭坡"}), ("，", {None}), ("サ", {None})],
)
def test_possible_classes(character, names):
    assert possible_classes(character) == names


@pytest.mark.parametrize("word", "慢慢地 天地 走了 了断 睡着 看着 觉得 银行 还行 重新 女儿 目的 好的".split())
def test_the_reading_in_context_is_a_possible_one(word):
    """按表遮住的不会错：语境里的读法总在可能的读法之中。"""
    assert rhyme_class(word) in possible_classes(word[-1])


# ---- 句式的写法 ----


def form(
    lines: int | None = None,
    line_chars: str | None = None,
    rhyme: str = "none",
    scheme: str | None = None,
    acrostic: str = "",
    structure: str | None = None,
) -> Form:
    return make_form(lines, line_chars, rhyme, scheme, acrostic, structure)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, Form()),
        ({"lines": 4}, Form(lines=4)),
        ({"line_chars": "7"}, Form(lengths=((7, 7),))),
        ({"line_chars": "5-9"}, Form(lengths=((5, 9),))),
        ({"line_chars": " 7，7, 5 – 6，7~8"}, Form(lengths=((7, 7), (7, 7), (5, 6), (7, 8)))),
        ({"rhyme": "auto"}, Form(rhyme="auto")),
        ({"rhyme": "江阳"}, Form(rhyme="江阳")),
        ({"scheme": "aaba"}, Form(rhyme="auto", scheme="AABA")),
        ({"scheme": "XAXA", "rhyme": "中东"}, Form(rhyme="中东", scheme="XAXA")),
        ({"acrostic": "春夏秋冬"}, Form(lines=4, acrostic="春夏秋冬")),
        ({"acrostic": "春夏", "lines": 4}, Form(lines=4, acrostic="春夏")),
        ({"structure": "主歌4 副歌2"}, Form(lines=6, sections=(("主歌", 4), ("副歌", 2)))),
        (
            {"structure": "主歌4 副歌2 副歌", "lines": 8},
            Form(lines=8, sections=(("主歌", 4), ("副歌", 2), ("副歌", 0))),
        ),
        (
            {"structure": "主歌2 副歌2", "acrostic": "春夏"},
            Form(lines=4, acrostic="春夏", sections=(("主歌", 2), ("副歌", 2))),
        ),
    ],
)
def test_make_form(options, expected):
    """每种写法，与几项同用。"""
    assert form(**options) == expected
    assert form(**options).given == bool(options)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"line_chars": "0"}, "--line_chars"),
        ({"line_chars": "9-5"}, "9-5"),
        ({"line_chars": "7,,7"}, "--line_chars"),
        ({"line_chars": "7,七"}, "七"),
        ({"line_chars": "-3"}, "-3"),
        ({"line_chars": "1000"}, "1000"),
        ({"rhyme": "江洋"}, "是否指 江阳"),
        ({"rhyme": "qqq"}, "auto"),
        ({"scheme": "A1"}, "--rhyme_scheme"),
        ({"scheme": "押"}, "--rhyme_scheme"),
        ({"scheme": "A A"}, "--rhyme_scheme"),
        ({"acrostic": "春a"}, "--acrostic"),
        ({"acrostic": "春，夏"}, "--acrostic"),
        ({"acrostic": "春1"}, "--acrostic"),
        ({"acrostic": "春夏秋", "lines": 2}, "3 个字"),
        ({"acrostic": "春夏秋", "structure": "主歌2"}, "3 个字"),
        ({"acrostic": "春夏", "structure": "主歌2 主歌"}, "藏头"),
        ({"structure": "主歌4", "lines": 5}, "4 行"),
        ({"structure": "主歌"}, "主歌4"),
        ({"structure": "主歌4 副歌"}, "副歌4"),
        ({"structure": "主歌0"}, "主歌0"),
        ({"structure": "4"}, "--structure"),
        ({"structure": "主歌4副歌4"}, "--structure"),
        ({"structure": "主歌1000"}, "--structure"),
    ],
)
def test_make_form_errors(options, named):
    """写法有误：一行，指出是哪一项。"""
    with pytest.raises(LyricsError) as caught:
        form(**options)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


# ---- 一行的约束 ----

SINGLES = "花家歌我月夜一你路书海来水飞高好楼走山天人心江光风中了着得地行重睡银觉慢看长亮里们"
PIECES = "慢慢 慢慢地 睡着 看着 银行 我们 走了 天长地 月亮 月亮， 风里， 走。 月，风 （花）".split()
LATIN = "love ly a o I 2 20 年2 爱a".split()
SPACED = [" ", " love", "love ", "月 花", " 风", "风 ", "  ", "，", "。", "…", "（", "🙂", "_", "\u3000"]
CONTROLS = 3  # <unk>、<s>、</s>


def make_vocabulary(pieces: Sequence[str], with_bytes: bool = False) -> Vocabulary:
    """三个控制词元（最后一个是 </s>）、字节、换行，然后各个词元。"""
    token_bytes = [b""] * CONTROLS + [bytes([byte]) for byte in range(256)] * with_bytes
    newline = len(token_bytes)
    return Vocabulary([*token_bytes, b"\n", *(piece.encode() for piece in pieces)], newline, CONTROLS - 1)


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_vocabulary([*SINGLES, *PIECES, *LATIN, *SPACED], with_bytes=True)


def allowed(constraint: LineConstraint) -> list[int]:
    """既没有遮住、细看也不拒绝的词元。"""
    mask = constraint.forbidden()
    return [token for token in range(len(mask)) if not mask[token] and not constraint.refuses(token)]


def draw_line(constraint: LineConstraint, draw: random.Random, steps: int = 300) -> bool:
    """在允许的词元里均匀地抽，写到换行或 </s> 为止；半个字之后无字可用时 False。"""
    vocabulary = constraint.vocabulary
    for _ in range(steps):
        mask = constraint.forbidden()
        choices = [token for token in range(len(mask)) if not mask[token]]
        draw.shuffle(choices)
        if draw.random() < 0.5:  # 字节词元多，一半时候不用
            choices.sort(key=lambda token: len(vocabulary.bytes[token]) == 1 and vocabulary.texts[token] is None)
        token = next((token for token in choices if not constraint.refuses(token)), None)
        if token is None:
            assert constraint.pending, f"无字可用：{constraint.text!r} {constraint.rule}"
            return False
        constraint.push(token)
        if token in (vocabulary.newline_id, vocabulary.eos_id):
            return True
    return False


CLASSES = frozenset(RHYME_CLASSES)
RHYMES = st.one_of(
    st.none(),
    st.sampled_from(sorted(CLASSES)).map(lambda name: frozenset({name})),
    st.sampled_from(sorted(CLASSES)).map(lambda name: CLASSES - {name}),
    st.sampled_from(sorted(CLASSES)).map(lambda name: CLASSES - {name} | {None}),
)


@settings(max_examples=250, deadline=None)
@given(
    start=st.sampled_from(["", "", "", "我", "love", "我 ", "天长"]),
    more=st.integers(1, 5),
    spread=st.integers(0, 4),
    rhymes=RHYMES,
    first=st.sampled_from(["", "", "月", "慢", "地"]),
    ends_song=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_every_finished_line_keeps_the_rule(vocabulary, start, more, spread, rhymes, first, ends_song, seed):
    """随便怎么抽，写完的行都合规矩；只要各辙的单字都有，除非停在半个字上，总有字可用。"""
    most = sung_count(start) + more + bool(first)
    rule = LineRule(max(1, most - spread), most, rhymes, first, ends_song)
    constraint = LineConstraint(vocabulary, rule, start, lambda line, new: "月花" in line[-new - 1 :])
    if not draw_line(constraint, random.Random(seed)):
        return
    line = constraint.text
    assert satisfies(line, rule, start), (line, rule, start)
    assert constraint.count == len(syllables(line))
    assert ends_song or not constraint.song_ended
    assert "月花" not in lyrics.normalise(line)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), bytes_only=st.booleans())
def test_any_line_takes_any_text(vocabulary, seed, bytes_only):
    """没有句式时，除换行、控制词元和不成字的字节外什么都行，空行也行。"""
    draw = random.Random(seed)
    constraint = LineConstraint(vocabulary, ANY_LINE)
    banned = {0, 1, *(token for token, text in enumerate(vocabulary.texts) if text and "\n" in text)}
    banned.discard(vocabulary.newline_id)
    assert set(range(len(vocabulary.texts))) - {*allowed(constraint), *banned} <= {
        token for token, piece in enumerate(vocabulary.bytes) if len(piece) == 1 and vocabulary.texts[token] != piece
    }
    written = b""
    for _ in range(20):
        choices = [token for token in allowed(constraint) if not bytes_only or len(vocabulary.bytes[token]) == 1]
        token = draw.choice(choices)
        if token in (vocabulary.newline_id, vocabulary.eos_id):
            continue
        constraint.push(token)
        written += vocabulary.bytes[token]
        assert constraint.text.encode() + constraint.pending == written
    assert not any(constraint.forbidden()[[vocabulary.newline_id, vocabulary.eos_id]]) or constraint.pending


SMALL = ["月", "花", "了", "慢", "地", "走了", "花，", "，", " ", "so", "花 月"]


@pytest.fixture(scope="module")
def small() -> Vocabulary:
    """十七个词元，有「龘」的三个字节；它们也拼得成「阘」等字。"""
    spelled = [bytes([byte]) for byte in "龘".encode()]
    token_bytes = [b"", *spelled, b"\n", b"", *(piece.encode() for piece in SMALL)]
    return Vocabulary(token_bytes, 4, 5)


def accepted(constraint: LineConstraint, written: tuple[int, ...], length: int) -> Iterator[tuple[int, ...]]:
    """约束允许的、写到换行为止的全部词元序列（不含换行）。"""
    for token in allowed(constraint):
        if token == constraint.vocabulary.newline_id:
            yield written
        elif token != constraint.vocabulary.eos_id and len(written) < length:
            further = LineConstraint(constraint.vocabulary, constraint.rule)
            further.text, further.count, further.pending = constraint.text, constraint.count, constraint.pending
            further._mask = constraint._mask
            further.push(token)
            yield from accepted(further, (*written, token), length)


@pytest.mark.parametrize(
    "rule",
    [
        LineRule(1, 3),
        LineRule(2, 2),
        LineRule(3, 3, frozenset({"梭坡"})),
        LineRule(1, 3, frozenset({"一七"})),
        LineRule(1, 2, frozenset({"乜斜", None})),
        LineRule(2, 3, frozenset({"发花"}), first="花"),
        LineRule(2, 3, CLASSES - {"梭坡"}),
        LineRule(1, 2, None, first="慢"),
        LineRule(0, 2, tidy=False),
        LineRule(2, 2, frozenset({"发花"}), tidy=False),
        LineRule(1, 3, frozenset({"发花", "言前"}), tidy=False),
    ],
)
def test_a_line_that_keeps_the_rule_is_never_blocked(small, rule):
    """小词表上逐个列举：约束放行的序列，恰是文字合规矩的序列。

    例外：行满时的末字若要押韵，不用字节拼。
    """
    length = 4

    def spelled(text: str) -> bool:
        return len(syllables(text)[-1]) == 1 and syllables(text)[-1] not in small.characters

    found = set(accepted(LineConstraint(small, rule), (), length))
    writable = [token for token in range(1, len(small.bytes)) if token not in (small.newline_id, small.eos_id)]
    expected = set()
    for count in range(length + 1):
        for tokens in itertools.product(writable, repeat=count):
            try:
                text = b"".join(small.bytes[token] for token in tokens).decode()
            except UnicodeDecodeError:
                continue
            if not satisfies(text, rule):
                continue
            if rule.rhymes is not None and len(syllables(text)) == rule.most and spelled(text):
                continue
            expected.add(tokens)
    texts = {tokens: b"".join(small.bytes[token] for token in tokens).decode() for tokens in found | expected}
    assert {texts[tokens] for tokens in found - expected} == set()
    assert {texts[tokens] for tokens in expected - found} == set()
    assert found == expected
    assert len(found) > 5


def test_the_last_character_is_read_in_its_line(small):
    """多音字按这一行里的读法：「慢慢」之后的「地」读 de。"""
    constraint = LineConstraint(small, LineRule(3, 3, frozenset({"一七"})))
    for character in "慢慢":
        constraint.forbidden()
        constraint.push(small.characters[character])
    assert small.characters["地"] not in allowed(constraint)
    constraint = LineConstraint(small, LineRule(3, 3, frozenset({"梭坡"})), "慢慢")
    assert small.characters["地"] in allowed(constraint)


def test_a_prompt_that_ends_with_a_mark_goes_on(small):
    """开头的半行以逗号收尾，照样接着写。"""
    constraint = LineConstraint(small, LineRule(3, 3), "月花，")
    assert small.characters["月"] in allowed(constraint)


def test_a_mark_spelled_in_bytes_does_not_cut_the_line_short(vocabulary):
    """没写够字数时，字节拼成的句末标点也不许：之后会无字可用。"""
    spelled = [CONTROLS + byte for byte in "—".encode()]
    for start in ("", "花"):
        constraint = LineConstraint(vocabulary, LineRule(3, 5), start)
        for token in spelled:
            if token not in allowed(constraint):
                break
            constraint.push(token)
        assert allowed(constraint), constraint.text


def test_bytes_never_lead_nowhere(vocabulary):
    """写下半个字之后，总有一种拼法能写完它。"""
    rule = LineRule(3, 5)

    def dead_ends(constraint: LineConstraint, given: bytes) -> Iterator[bytes]:
        going = allowed(constraint)
        if not going:
            yield given
        for token in going:
            piece = vocabulary.bytes[token]
            if len(piece) == 1 and piece[0] >= 0x80 and len(given) < 2:
                further = LineConstraint(vocabulary, rule)
                further.pending = given
                further.forbidden()
                further.push(token)
                yield from dead_ends(further, given + piece)

    assert list(itertools.islice(dead_ends(LineConstraint(vocabulary, rule), b""), 5)) == []


def test_what_a_vocabulary_lacks_is_said():
    """词表里没有藏头的字、没有那个辙的字：写明是哪一个。"""
    vocabulary = make_vocabulary("月夜花")
    with pytest.raises(LyricsError, match="「龘」"):
        vocabulary.check(Form(acrostic="月龘"))
    with pytest.raises(LyricsError, match="江阳"):
        vocabulary.check(Form(rhyme="江阳"))
    vocabulary.check(Form(acrostic="月", rhyme="发花"))


def test_rhyming_lists_the_common_characters_first(vocabulary):
    """同韵字：单字，词表里靠前的在前，外文与标点不算。"""
    assert vocabulary.rhyming("乜斜") == ["月", "夜", "觉"]
    assert vocabulary.rhyming("发花") == ["花", "家"]
    assert all(rhyme_class(character) == "梭坡" for character in vocabulary.rhyming("梭坡"))
    assert {"歌", "我", "了"} <= set(vocabulary.rhyming("梭坡"))


# ---- 一首歌的计划 ----

WRITTEN = [*SINGLES, "我们", "月亮", "月亮，", "走了", "慢慢", "，", " ", "love"]


class Draft:
    def __init__(self, constraint: LineConstraint) -> None:
        self.constraint, self.tokens = constraint, []


class RandomComposer:
    """在允许的词元里均匀地抽的 Composer；记下接上的词元。"""

    def __init__(self, vocabulary: Vocabulary, seed: int = 0) -> None:
        self.vocabulary, self.draw, self.written = vocabulary, random.Random(seed), []
        self.following: list[tuple[int, ...]] = []

    def feed(self, tokens: Sequence[int]) -> None:
        self.written += tokens

    def line(self, constraint, longest, unwanted=lambda draft: False, following=(), may_cut=False):
        self.following.append(tuple(following))
        for _ in range(8):
            draft = Draft(constraint())
            while len(draft.tokens) < longest:
                choices = allowed(draft.constraint)
                if not choices:
                    break
                draft.tokens.append(self.draw.choice(choices))
                draft.constraint.push(draft.tokens[-1])
                if draft.tokens[-1] in (self.vocabulary.newline_id, self.vocabulary.eos_id):
                    self.written += draft.tokens
                    return draft
            if may_cut and len(draft.tokens) == longest:
                return draft
        return None

    def text(self) -> str:
        return b"".join(self.vocabulary.bytes[token] for token in self.written).decode()


@pytest.fixture(scope="module")
def words() -> Vocabulary:
    return make_vocabulary(WRITTEN)


def encode(vocabulary: Vocabulary, text: str) -> list[int]:
    return [vocabulary.characters[character] for character in text]


def write_song(vocabulary: Vocabulary, form: Form, prompt: str = "", seed: int = 0, **options):
    """写完一首：（文字，计划，Composer）。"""
    plan = SongPlan(form, vocabulary, lambda text: encode(vocabulary, text), prompt, **options)
    composer = RandomComposer(vocabulary, seed)
    return prompt + "".join(plan.write(composer, None if form.lines else 60)), plan, composer


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(
    ("scheme", "same", "different"),
    [
        ("A", [(0, 1), (1, 2), (2, 3), (3, 7)], []),
        ("AAAA", [(0, 1), (1, 2), (2, 3), (3, 7)], []),
        ("AABA", [(0, 1), (1, 3), (3, 4), (4, 7)], [(0, 2), (0, 6)]),
        ("ABAB", [(0, 2), (1, 3), (0, 4), (1, 5)], [(0, 1), (2, 3)]),
        ("XAXA", [(1, 3), (3, 5), (5, 7)], []),
        ("AABB", [(0, 1), (2, 3), (0, 4), (2, 6)], [(0, 2)]),
    ],
)
def test_rhyme_schemes(words, scheme, same, different, seed):
    """同一个字母同韵，不同的字母不同韵，押的行都以汉字收尾；给了辙名时，首个字母就是它。"""
    for rhyme in ("auto", "江阳"):
        text, plan, _ = write_song(words, form(8, "4-6", rhyme, scheme), seed=seed)
        lines = text.split("\n")
        found = [reading(line) for line in lines]
        assert lines == plan.lines
        assert len(lines) == 8
        assert all(satisfies(line, LineRule(4, 6)) for line in lines)
        assert all(found[a] == found[b] is not None for a, b in same), (scheme, lines)
        assert all(found[a] != found[b] for a, b in different), (scheme, lines)
        if rhyme != "auto":
            assert found[scheme.index("A")] == rhyme


def test_a_letter_used_once_does_not_rhyme(words):
    """ABCB：A、C 只出现一次，不押；--rhyme 说的是 B 的韵。"""
    firsts = set()
    for seed in range(12):
        text, _, _ = write_song(words, form(8, "4", "auto", "ABCB"), seed=seed)
        found = [reading(line) for line in text.split("\n")]
        assert found[1] == found[3] == found[5] == found[7]
        firsts.add(found[0] == found[4])
    assert False in firsts
    text, _, _ = write_song(words, form(4, "4", "江阳", "ABCB"))
    assert [reading(line) for line in text.split("\n")][1::2] == ["江阳", "江阳"]


def test_letters_may_not_share_a_class_whichever_comes_first(words):
    """BABA 与 ABAB 一样：两个字母不同韵。"""
    for seed in range(20):
        text, _, _ = write_song(words, form(4, "3", "auto", "BABA"), seed=seed)
        found = [reading(line) for line in text.split("\n")]
        assert found[0] == found[2] != found[1] == found[3]
        text, _, _ = write_song(words, form(4, "3", "江阳", "XABA"), seed=seed)
        assert [reading(line) for line in text.split("\n")][1::2] == ["江阳", "江阳"]


def test_the_class_comes_from_the_first_line_that_has_one(words):
    """提示词里的行定韵：外文收尾的不算，下一个押韵的行才算。"""
    text, _, _ = write_song(words, form(5, "3-5", "auto"), "天长地\nlove\n")
    assert [reading(line) for line in text.split("\n") if line][2:] == ["一七"] * 3
    text, _, _ = write_song(words, form(4, "3-5", "auto"), "我 love\n")
    found = [reading(line) for line in text.split("\n") if line][1:]
    assert len(set(found)) == 1
    assert found[0] is not None


def test_sections_restart_the_scheme(words):
    """每段从韵式的开头数起。"""
    text, _, _ = write_song(words, form(rhyme="auto", scheme="XA", line_chars="4", structure="主歌3 副歌2"))
    found = [reading(line) for line in text.replace("\n\n", "\n").split("\n")]
    assert found[1] == found[4] is not None


def test_prompt_lines_count(words):
    """提示词的整行算已写的行，半行接着写；写成的全文以提示词开头，行间只一个换行。"""
    text, plan, composer = write_song(words, form(4, "5"), "我们看着月\n山")
    assert text.startswith("我们看着月\n山")
    assert text.split("\n") == plan.lines
    assert len(plan.lines) == 4
    assert all(len(syllables(line)) == 5 for line in plan.lines)
    assert "我们看着月\n山" + composer.text().removesuffix("\n") == text


@pytest.mark.parametrize("prompt", ["我们看着月\n", "我们看着月\n山高\n"])
def test_a_prompt_that_ends_with_a_new_line_adds_no_empty_line(words, prompt):
    """提示词以换行收尾：不再多一个空行。"""
    text, plan, _ = write_song(words, form(4, "2-5"), prompt)
    assert text.split("\n") == plan.lines
    assert len(plan.lines) == 4
    text, _, _ = write_song(words, Form(), prompt)
    assert not text.startswith(prompt + "\n\n")


def test_a_full_prompt_is_a_finished_song(words):
    """提示词已写满行数：不再写。"""
    text, plan, composer = write_song(words, form(2), "我们\n看着\n")
    assert (text, plan.ended, plan.tokens, composer.written) == ("我们\n看着\n", True, 0, [])


@pytest.mark.parametrize(
    ("prompt", "options", "named"),
    [
        ("我们\n看着\n月", {"lines": 2}, "3 行"),
        ("我们\n看着\n", {"lines": 1}, "2 行"),
        ("我们", {"acrostic": "月夜"}, "「月」"),
        ("月亮\n我们", {"acrostic": "月夜"}, "第 2 行「我们」"),
        ("我们看着月", {"line_chars": "4"}, "4 个字"),
        ("我们看着\n我们看着月", {"line_chars": "4,3"}, "3 个字"),
        ("", {"acrostic": "龘"}, "「龘」"),
    ],
)
def test_prompts_against_the_form(words, prompt, options, named):
    """开头与句式不合：一行，说明是哪里。"""
    with pytest.raises(LyricsError) as caught:
        write_song(words, form(**options), prompt)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value).replace(prompt, "")


@pytest.mark.parametrize("seed", range(4))
def test_acrostic(words, seed):
    """第 i 行以第 i 个字开头，其余的行不论。"""
    text, _, _ = write_song(words, form(6, "2-5", acrostic="月山风人"), seed=seed)
    assert [line[0] for line in text.split("\n")][:4] == list("月山风人")
    text, _, _ = write_song(words, form(acrostic="月山风人", line_chars="3", rhyme="auto"), "月亮\n山", seed=seed)


def test_lengths_cycle(words):
    """行长循环使用。"""
    text, _, _ = write_song(words, form(7, "7,5,3-4"))
    counts = [len(syllables(line)) for line in text.split("\n")]
    assert counts[::3] == [7, 7, 7]
    assert counts[1::3] == [5, 5]
    assert set(counts[2::3]) <= {3, 4}


def test_sections_repeat_word_for_word(words):
    """重复的段落一字不差；段与段之间恰空一行；写下的词元就是各行。"""
    text, plan, composer = write_song(words, form(line_chars="4", structure="主歌3 副歌2 主歌3 副歌 尾声1 副歌"))
    verse, chorus, second, repeated, ending, last = (part.split("\n") for part in text.split("\n\n"))
    assert [len(part) for part in (verse, chorus, second, ending)] == [3, 2, 3, 1]
    assert chorus == repeated == last
    assert verse != second
    assert plan.lines == text.replace("\n\n", "\n").split("\n")
    assert composer.text() == "".join(line + "\n" for line in plan.lines)
    assert plan.ended
    assert plan.tokens < len(composer.written)


def test_a_repeat_follows_one_whole_section(words):
    """同名的段行数不同时，重复的是其中一段，不会一半这段一半那段。"""
    for structure in ("主歌2 主歌3 主歌", "主歌3 副歌1 主歌2 主歌"):
        text, _, _ = write_song(words, form(line_chars="4", structure=structure))
        *earlier, last = text.split("\n\n")
        assert last in earlier


def test_fixed_lines_are_kept(words):
    """定下的行照搬，其余照句式写；其前一行知道要与它相接。"""
    fixed = {1: "我 love，月", 3: "天长地"}
    text, plan, composer = write_song(words, form(5, "6", "auto"), fixed=fixed | {1: "我们月，"})
    lines = text.split("\n")
    assert (lines[1], lines[3]) == ("我们月，", "天长地")
    assert [len(syllables(lines[place])) for place in (0, 2, 4)] == [6, 6, 6]
    assert composer.following == [tuple(encode(words, "我们月，")), tuple(encode(words, "天长地")), ()]
    assert composer.text().removesuffix("\n") == text
    assert plan.tokens == len(composer.written) - len("我们月，天长地") - 2


def test_a_fixed_first_line_decides_the_rhyme(words):
    """定下的第一行算第一个韵脚。"""
    text, _, _ = write_song(words, form(4, "4", "auto"), fixed={0: "看月亮"})
    assert {reading(line) for line in text.split("\n")} == {"江阳"}


def test_without_a_number_of_lines_the_model_ends_the_song(words):
    """没有行数：写到 </s> 或写满词元；ended 说的是有没有收尾。"""
    ended = set()
    for seed in range(30):
        text, plan, composer = write_song(words, form(line_chars="2-3"), seed=seed)
        assert plan.tokens == len(composer.written)
        assert plan.ended == (composer.written[-1] == words.eos_id)
        assert plan.ended or plan.tokens >= 60
        assert all(2 <= len(syllables(line)) <= 3 for line in text.split("\n"))
        ended.add(plan.ended)
    assert True in ended


def test_with_a_number_of_lines_only_the_last_may_end_the_song(words):
    """有行数：不到最后一行不收尾。"""
    for seed in range(20):
        _, plan, composer = write_song(words, form(3, "2"), seed=seed)
        assert len(plan.lines) == 3
        assert plan.ended
        assert words.eos_id not in composer.written[:-1]


def test_without_a_form_tokens_are_the_limit(words):
    """没有句式：写满 max_tokens 就停，停在半行上也算写了。"""
    plan = SongPlan(Form(), words, lambda text: encode(words, text), "我们")
    composer = RandomComposer(words, 3)
    text = "我们" + "".join(plan.write(composer, 25))
    assert plan.tokens == 25 or plan.ended
    assert text.split("\n") == plan.lines


def test_a_line_that_cannot_be_written_is_said():
    """写不出来：说是第几行。"""
    vocabulary = make_vocabulary("月花")
    with pytest.raises(LyricsError, match="第 1 行"):
        write_song(vocabulary, form(2, "1", "发花", acrostic="月"))


# ---- 照抄 ----

CORPUS = ["今夜风里等你，\n山高水长。", "月亮照着我们的江，月亮落在风里", "走了走了走了"]


@pytest.fixture(scope="module")
def copies(tmp_path_factory) -> CopyIndex:
    folder = tmp_path_factory.mktemp("copies") / "index"
    CopyIndex.build(CORPUS, ["甲", "乙", "丙"], folder, "f", len(CORPUS))
    return CopyIndex.load(folder, "f")


@pytest.fixture(scope="module")
def copying() -> Vocabulary:
    """多半是语料里的字与片段的词表。"""
    return make_vocabulary(
        [*sorted(set(lyrics.normalise("".join(CORPUS)))), "风里等", "月亮", "山高", "走了走", "等你月", "，"]
    )


def longest_copy(text: str) -> int:
    """与语料中任何一首连续相同的最多几个字。"""
    sung = [lyrics.normalise(song) for song in CORPUS]
    text = lyrics.normalise(text)
    spans = ((start, end) for start in range(len(text)) for end in range(start + 1, len(text) + 1))
    return max((end - start for start, end in spans if any(text[start:end] in song for song in sung)), default=0)


class CopyingComposer(RandomComposer):
    """允许时总想照抄：先试能把照抄延长的词元。"""

    def line(self, constraint, longest, unwanted=lambda draft: False, following=(), may_cut=False):
        draft = Draft(constraint())
        while True:
            choices = allowed(draft.constraint)
            if not choices:
                return None
            sung = lyrics.normalise(self.text() + draft.constraint.text)[-8:]
            self.draw.shuffle(choices)
            choices.sort(key=lambda token: -self.copied(sung, self.vocabulary.texts[token] or ""))
            draft.tokens.append(choices[0])
            draft.constraint.push(choices[0])
            if choices[0] == self.vocabulary.newline_id:
                self.written += draft.tokens
                return draft

    @staticmethod
    def copied(sung: str, piece: str) -> int:
        text = sung + lyrics.normalise(piece)
        return longest_copy(text) if piece.strip() else 0


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 5])
def test_max_copy(copying, copies, limit):
    """照抄不超过 max_copy：跨行的、一个词元内部的都算；不限时这个 Composer 抄得更长。"""
    reached = 0
    for seed in range(6):
        plan = SongPlan(form(8, "1-3"), copying, lambda text: encode(copying, text), "", copies, limit)
        text = "".join(plan.write(CopyingComposer(copying, seed)))
        reached = max(reached, longest_copy(text))
    assert reached == limit if limit else reached > 5


def test_max_copy_looks_inside_a_token(copying, copies):
    """一个词元的前几个字接上前文算照抄，后面的字不同也一样。"""
    token = copying.texts.index("等你月")
    for limit, refused in ((3, True), (4, False)):
        plan = SongPlan(form(3, "1-5"), copying, lambda text: encode(copying, text), "风\n里\n", copies, limit)
        constraint = plan.constraint(2)
        constraint.forbidden()
        assert constraint.refuses(token) == refused


def test_max_copy_counts_the_prompt(copying, copies):
    """开头的字接上新的字也算；开头自己照抄多长不管。"""
    for prompt in ("今夜风", "今夜风里\n"):
        plan = SongPlan(form(2, "3-4"), copying, lambda text: encode(copying, text), prompt, copies, 4)
        text = prompt + "".join(plan.write(CopyingComposer(copying)))
        assert longest_copy(text) == 4
    prompt = "今夜风里等你\n"
    plan = SongPlan(form(2, "3"), copying, lambda text: encode(copying, text), prompt, copies, 2)
    text = "".join(plan.write(CopyingComposer(copying)))
    assert longest_copy(text) <= 2
    assert not text.strip().startswith("山")


def test_max_copy_counts_the_fixed_line_that_follows(copying, copies):
    """下一行已定时，两行连起来也不超过 max_copy。"""
    for seed in range(6):
        plan = SongPlan(form(2, "4"), copying, lambda text: encode(copying, text), "", copies, 4, {1: "等你山高"})
        text = "".join(plan.write(RandomComposerEndingWith("今夜风里", copying, seed)))
        assert longest_copy(text) <= 4, text


class RandomComposerEndingWith(CopyingComposer):
    """写这一行：允许时照写，不允许的字随便换。"""

    def __init__(self, wish: str, vocabulary: Vocabulary, seed: int) -> None:
        super().__init__(vocabulary, seed)
        self.wish = wish

    def line(self, constraint, longest, unwanted=lambda draft: False, following=(), may_cut=False):
        for attempt in range(8):
            draft = Draft(constraint())
            for character in self.wish:
                choices = allowed(draft.constraint)
                wished = self.vocabulary.characters[character]
                token = wished if wished in choices and not attempt else self.draw.choice(choices)
                draft.tokens.append(token)
                draft.constraint.push(token)
                if draft.constraint.count >= 4:
                    break
            if draft.constraint.count == 4 and self.vocabulary.newline_id in allowed(draft.constraint):
                draft.constraint.push(self.vocabulary.newline_id)
                return draft
        return None


def test_repeats_are_told_apart_by_what_is_sung(words):
    """几稿取一时，与前面的行只差标点的算重复。"""
    plan = SongPlan(form(3), words, lambda text: encode(words, text), "我们，\n")
    draft = Draft(plan.constraint(1))
    for token in (words.characters["我"], words.characters["们"]):
        draft.constraint.push(token)
    assert plan._repeats(draft)
    draft.constraint.push(words.characters["月"])
    assert not plan._repeats(draft)


def test_rules_are_plain_values():
    """规矩可以换掉一项再用；`longest` 容得下最长的拼法。"""
    rule = dataclasses.replace(LineRule(5, 7), most=9)
    assert rule.longest >= 9 * 5 + 1


ENDINGS = list(csv.DictReader((Path(__file__).parent / "rhyme_endings.tsv").open(encoding="utf-8"), delimiter="\t"))


def test_hand_checked_endings():
    """四百多个行末，逐个用手定的读法（三百多个是多音字，六十多个以「儿」收尾）：辙都对。"""
    assert len(ENDINGS) > 400
    wrong = [
        (row["ending"], row["syllable"], rhyme_class(row["ending"]))
        for row in ENDINGS
        if rhyme_class(row["ending"]) != row["rhyme"]
    ]
    assert wrong == []


def test_hand_checked_endings_are_never_masked():
    """按末字遮住词元时，语境里的辙总在可能的之中。"""
    for row in ENDINGS:
        last = [character for character in row["ending"] if character.isalnum()][-1]
        assert row["rhyme"] in possible_classes(last), row["ending"]


@pytest.mark.parametrize("flags", [{"acrostic": "你他"}, {"lines": 2, "line_chars": "4"}])
def test_messages_quote_only_the_start_of_a_long_line(words, flags):
    """一万多字的开头与句式不合：消息只引它的前几个字。"""
    form = make_form(flags.get("lines"), flags.get("line_chars"), "none", None, flags.get("acrostic", ""), None)
    with pytest.raises(LyricsError) as caught:
        SongPlan(form, words, lambda text: [], "我" * 12_000)
    assert len(str(caught.value)) < 100
