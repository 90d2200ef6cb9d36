"""拿不准的读音：要平仄、要押韵的地方不用；人定的字照用。"""

import pypinyin
import pytest
from hypothesis import given
from hypothesis import strategies as st
from judged import allowed, make_vocabulary

from lyrics.constraint import LineConstraint, LineRule
from lyrics.keywords import positions
from lyrics.readings import likely_classes, possible_tones, tone_bits
from lyrics.sound import class_as_written, rhyme_class, sung_units, tones_as_written
from lyrics.words import one_each

EITHER = 3
HANZI = "长江为难民重来著了乾坤花月不是一声夜梦人行走看地慢春風難說話還没完银觉得儿女"


@pytest.mark.parametrize(
    ("line", "bits"),
    [
        ("夜长人不寐", (2, EITHER, 1, EITHER, 2)),  # 不寐：词组里注的是变调
        ("长江东去", (1, 1, 1, 2)),
        ("难民", (2, 1)),
        ("人难，民安", (1, EITHER, 1, 1)),  # 逗号两边连着读是难民
        ("阑干外，重来", (1, 1, 2, EITHER, 1)),
        ("乾坤大", (1, 1, 2)),
        ("我love长", (2, 0, EITHER)),
        ("为", (EITHER,)),
    ],
)
def test_tones_that_a_reader_could_hear(line, bits):
    """在认得的词里的由词定；单用的多音字平仄都算；逗号两边连得成词的也算。"""
    assert tone_bits(line) == bits


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("我走了", {"梭坡", "遥条"}),
        ("没完没了", {"遥条"}),
        ("花儿", {"发花", "一七"}),
        ("女儿", {"一七"}),
        ("名著", {"姑苏"}),
        ("看著", {"姑苏", "梭坡", "遥条"}),
        ("慢慢地", {"梭坡"}),
        ("天地", {"一七"}),
        ("银行。", {"江阳"}),
        ("月", {"乜斜"}),
        ("I love you", {None}),
    ],
)
def test_rhymes_that_a_reader_could_hear(line, names):
    assert likely_classes(line) == names


@given(st.text(HANZI, min_size=1, max_size=14))
def test_the_reading_in_context_is_among_them(line):
    """照上下文的读法总在里面；一词一词注的音与整行注的相同。"""
    assert rhyme_class(line) in likely_classes(line)
    whole = pypinyin.lazy_pinyin(line, style=pypinyin.Style.TONE3, neutral_tone_with_five=True)
    assert tones_as_written(line) == [1 if one[-1] in "12" else 2 for one in whole]
    assert class_as_written(line) == class_as_written(line[-8:]) or len(line) > 8
    assert all(tone & bits for tone, bits in zip(tones_as_written(line), tone_bits(line), strict=True))


@given(st.text(HANZI + "春旋是只三更，", min_size=1, max_size=14))
def test_no_line_reads_a_character_otherwise(line):
    """按字遮住的不会错：一行里的读法都在 `possible_tones` 之中；字典里的僻读不在。"""
    sung = [character for character in line if character.isalnum()]
    assert all(
        bits | possible_tones(one) == possible_tones(one) for one, bits in zip(sung, tone_bits(line), strict=True)
    )
    assert (possible_tones("春"), possible_tones("是"), possible_tones("长")) == (1, 2, EITHER)


def test_an_unsure_character_is_not_drawn():
    """平仄、韵定了的地方，不抽单用的多音字；在词里的照抽。"""
    vocabulary = make_vocabulary([*"长江夜花着过", "走了", "没完没了"])
    tones = LineConstraint(vocabulary, LineRule(2, 2, tones="平中"))
    assert vocabulary.characters["长"] not in allowed(tones)
    assert vocabulary.characters["花"] in allowed(tones)
    for name, written in (("梭坡", {"过"}), ("遥条", set()), ("发花", {"花"})):
        rhymed = LineConstraint(vocabulary, LineRule(1, 1, frozenset({name})))
        assert {vocabulary.texts[token] for token in allowed(rhymed)} == written
    four = LineConstraint(vocabulary, LineRule(4, 4, frozenset({"遥条"})))
    assert "没完没了" in {vocabulary.texts[token] for token in allowed(four)}


def test_what_a_person_asks_for_may_be_read_either_way():
    """开头、藏头、关键词里的多音字，有一种读法合就行；拿得准的位置在前。"""
    vocabulary = make_vocabulary([*"长江夜花着过", "走了"])
    assert LineConstraint(vocabulary, LineRule(2, 2, tones="平中"), "长").begun_well()
    assert not LineConstraint(vocabulary, LineRule(2, 2, tones="仄中"), "花").begun_well()
    first = LineConstraint(vocabulary, LineRule(2, 2, tones="平中", first="长"))
    assert [vocabulary.texts[token] for token in allowed(first)] == ["长"]
    done = LineConstraint(vocabulary, LineRule(3, 3, frozenset({"梭坡"})), "我走了")
    assert vocabulary.newline_id in allowed(done)
    assert positions("长", LineRule(3, 3, tones="平仄中")) == [2]
    assert positions("长", LineRule(2, 2, tones="平仄")) == [0, 1]
    assert positions("走了", LineRule(2, 2, frozenset({"遥条"}))) == [0]
    assert positions("走了", LineRule(2, 2, frozenset({"江阳"}))) == []


WORDS = make_vocabulary([*dict.fromkeys(HANZI), "长江", "走了", "a", "，"])


@given(st.text(HANZI + "a，", max_size=8), st.sampled_from([1, 2]))
def test_masked_tones_are_the_ones_that_would_be_refused(written, wanted):
    """先遮住的，细看也要拒绝；前面的字让它成词的不遮。"""
    count = len(sung_units(written))
    for token in WORDS.out_of_tone(one_each(sung_units(written)), wanted).nonzero()[0]:
        assert tone_bits(written + WORDS.texts[token])[count] != wanted
    after = WORDS.out_of_tone("难", 1)
    assert not after[WORDS.characters["民"]]
    assert WORDS.out_of_tone("花", 1)[WORDS.characters["长"]]
    assert WORDS.out_of_tone("花", 2)[WORDS.characters["难"]]
