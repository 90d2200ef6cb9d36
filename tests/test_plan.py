"""整首歌的计划：韵式、段落、藏头、定下的行、照抄的上限。"""

import random
from collections.abc import Sequence

import pytest
from judged import SINGLES, allowed, form, make_vocabulary, reading, satisfies, syllables

from lyrics.constraint import LineConstraint, LineRule, Vocabulary
from lyrics.copies import CopyIndex
from lyrics.form import Form, LyricsError, make_form
from lyrics.plan import SongPlan
from lyrics.sound import normalise

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
    assert composer.text() == text + "\n"
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
        [*sorted(set(normalise("".join(CORPUS)))), "风里等", "月亮", "山高", "走了走", "等你月", "，"]
    )


def longest_copy(text: str) -> int:
    """与语料中任何一首连续相同的最多几个字。"""
    sung = [normalise(song) for song in CORPUS]
    text = normalise(text)
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
            sung = normalise(self.text() + draft.constraint.text)[-8:]
            self.draw.shuffle(choices)
            choices.sort(key=lambda token: -self.copied(sung, self.vocabulary.texts[token] or ""))
            draft.tokens.append(choices[0])
            draft.constraint.push(choices[0])
            if choices[0] == self.vocabulary.newline_id:
                self.written += draft.tokens
                return draft

    @staticmethod
    def copied(sung: str, piece: str) -> int:
        text = sung + normalise(piece)
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


@pytest.mark.parametrize("flags", [{"acrostic": "你他"}, {"lines": 2, "line_chars": "4"}])
def test_messages_quote_only_the_start_of_a_long_line(words, flags):
    """一万多字的开头与句式不合：消息只引它的前几个字。"""
    form = make_form(flags.get("lines"), flags.get("line_chars"), "none", None, flags.get("acrostic", ""), None)
    with pytest.raises(LyricsError) as caught:
        SongPlan(form, words, lambda text: [], "我" * 12_000)
    assert len(str(caught.value)) < 100
