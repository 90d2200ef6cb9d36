"""一行的约束：放行的恰是合规矩的，不会无字可用。"""

import dataclasses
import itertools
import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judged import CONTROLS, SINGLES, allowed, make_vocabulary, satisfies, spaces_stand, syllables

from lyrics.constraint import ANY_LINE, LineConstraint, LineRule, Vocabulary
from lyrics.form import Form, LyricsError
from lyrics.sound import RHYME_CLASSES, normalise, rhyme_class, sung_count

PIECES = "慢慢 慢慢地 睡着 看着 银行 我们 走了 天长地 月亮 月亮， 风里， 走。 月，风 （花）".split()
LATIN = "love ly a o I 2 20 年2 爱a".split()
SPACED = [" ", " love", "love ", "月 花", " 风", "风 ", "  ", "，", "。", "…", "（", "🙂", "_", "\u3000"]


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return make_vocabulary([*SINGLES, *PIECES, *LATIN, *SPACED], with_bytes=True)


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


@settings(max_examples=250)
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
    assert "月花" not in normalise(line)


@settings(max_examples=60)
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

    例外：行满时的末字若要押韵，不用字节拼；单独的一个空格写下时还不知道后面是外文词。
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
            if rule.tidy and not spaces_stand(text, before_foreign=False):
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


def test_rules_are_plain_values():
    """规矩可以换掉一项再用；`longest` 容得下最长的拼法。"""
    rule = dataclasses.replace(LineRule(5, 7), most=9)
    assert rule.longest >= 9 * 5 + 1
