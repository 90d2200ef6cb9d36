"""照句式一行一行地写一首歌。"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from lyrics.constraint import ANY_LINE, LineConstraint, LineRule, reachable
from lyrics.form import EXAMPLE_SPAN, Form, FormLine, LyricsError, _laid_out
from lyrics.keywords import assigned, positions
from lyrics.notation import shape_text
from lyrics.sound import RHYME_CLASSES, normalise, rhyme_class, sung_count
from lyrics.vocabulary import Vocabulary

SHOWN = 30  # 消息里最多引一行的这么多字

MOST_POSITIONS = 6  # 一个关键词在一行里最多试几处


@dataclass
class SongPlan:
    """照句式写一首歌，记着写到哪里、各个韵脚是哪一辙。

    Args:
        prompt: 歌的开头；完整的行算作已写的行，最后半行接着写。
        encode: 文字 → 词元。
        copies: 语料的索引；None 表示不查照抄。
        max_copy: 与语料中任何一首连续相同的字不超过这么多（可唱的字，跨行也算）；0 为不限。
        fixed: 第 i 行（从 0 起）已定的文字，写到那里照搬。
        readings: 第 i 行的末字选定读作哪一辙；没有的照 `rhyme_class`。

    Attributes:
        lines: 写好的各行。
        tokens: 新写了多少个词元。
        min_tokens: 没有定行数时，写满这么多个词元之前不收尾。
        ended: 是否写到了头（写满行数，或模型收尾）。
        relaxed: 停顿前面没能收在认得的词上的各行（从 0 起）。

    Raises:
        LyricsError: 句式与词表、开头不合，或有一行写不出来。
    """

    form: Form
    vocabulary: Vocabulary
    encode: Callable[[str], list[int]]
    prompt: str = ""
    copies: Any = None
    max_copy: int = 0
    fixed: dict[int, str] = field(default_factory=dict)
    lines: list[str] = field(default_factory=list)
    tokens: int = 0
    ended: bool = False
    min_tokens: int = 0
    readings: Mapping[int, str] = field(default_factory=dict)
    relaxed: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.vocabulary.check(self.form)
        self._classes: dict[str, str] = {}
        if self.form.rhyme in RHYME_CLASSES:
            self._classes[self._main_letter] = self.form.rhyme
        self._sung = ""
        self._sections = _laid_out(self.form.sections)
        self._places: dict[int, str] = {}  # 第几行写哪个关键词
        *whole, self._start = self.prompt.split("\n")
        whole = [line for line in whole if line.strip()]
        for line in whole:
            self.add(line)
        self._given = len(whole)
        for index, line in sorted(self.fixed.items()):
            self._remember_rhyme(index, line)
        if self.form.given:
            self._check_prompt(len(whole))
            self._place_keywords()

    def _check_prompt(self, whole: int) -> None:
        form = self.form
        if form.lines is not None and whole + bool(self._start) > form.lines:
            raise LyricsError(f"开头已有 {whole + bool(self._start)} 行，却只写 {form.lines} 行")
        for index, line in enumerate(self.lines + [self._start] * bool(self._start)):
            first = form.acrostic[index : index + 1]
            if not line.startswith(first):
                raise LyricsError(f"开头的第 {index + 1} 行「{line[:SHOWN]}」不以藏头的「{first}」开始")
        for index, first in enumerate(form.acrostic):
            for twin in self.twins(index):
                if form.acrostic[twin : twin + 1] not in ("", first):
                    raise LyricsError(f"第 {index + 1} 行与第 {twin + 1} 行要一字不差，藏头却不同；请去掉一样")
        rule = self.rule(whole)
        if self._start and sung_count(self._start) > rule.most:
            raise LyricsError(f"开头的最后一行「{self._start[:SHOWN]}」已超过这一行的 {rule.most} 个字")
        if self._start and not LineConstraint(self.vocabulary, rule, self._start).begun_well():
            raise LyricsError(f"开头的最后一行「{self._start[:SHOWN]}」与这一行的平仄或停顿不合")

    def rule(self, index: int) -> LineRule:
        """第 index 行（从 0 起）的规矩，不算这一行的关键词。"""
        form = self.form
        if not form.given:
            return ANY_LINE if self.tokens >= self.min_tokens else dataclasses.replace(ANY_LINE, ends_song=False)
        line = form.line(index)
        last = self.tokens >= self.min_tokens if form.lines is None else index + 1 == form.lines
        same = [index, *self.twins(index)]
        first = next((form.acrostic[place] for place in same if place < len(form.acrostic)), "")
        rhymes = self._rhymes(index)
        return LineRule(
            line.least, line.most, rhymes, first, last, True, line.breaks, line.tones, avoided=self.form.keywords
        )

    def _rules(self, index: int, start: str) -> list[LineRule]:
        """第 index 行的规矩；要写关键词的，从哪个字起写各一条。"""
        rule, word = self.rule(index), self._places.get(index)
        if word is None:
            return [rule]
        places = positions(word, rule, sung_count(start))
        step = -(-len(places) // MOST_POSITIONS)
        return [
            dataclasses.replace(rule, least=max(rule.least, place + len(word)), keyword=(place, word))
            for place in places[:: step or 1]
        ]

    def _place_keywords(self) -> None:
        """还没有写过的关键词分到还没有写的各行。

        Raises:
            LyricsError: 分不下。
        """
        written = [normalise(line) for line in [*self.lines, *self.fixed.values(), self._start]]
        words = list(self.form.keywords)
        for word in [word for word in words if any(word != other and word in other for other in words)]:
            words.remove(word)  # 写了长的，短的就在里面
        for line in written:
            for word in [other for other in dict.fromkeys(words) for _ in range(line.count(other))]:
                if word in words:
                    words.remove(word)
        total = self.form.lines or 0
        free = [index for index in range(len(self.lines), total) if self._known(index) is None]
        free = [index for index in free if all(twin > index for twin in self.twins(index))]
        found = assigned(words, free, self._keyword_fits) if words else {}
        if found is None:
            raise LyricsError(
                f"关键词 {'、'.join(words)} 在余下的 {len(free)} 行里放不下：一行放一个，要合字数、平仄与停顿"
            )
        self._places = found

    def _keyword_fits(self, word: str, index: int) -> int:
        rule = self.rule(index)
        start = sung_count(self._start) if index == self._given == len(self.lines) else 0
        letter = self._letter(index)
        opens = all(self._letter(earlier) != letter for earlier in range(len(self.lines), index))
        settled = rule.rhymes is None or len(rule.rhymes) == 1 or opens  # 押韵的头一行自己定韵
        if positions(word, rule, start, may_end=settled):
            return 1 if self.twins(index) else 2
        return int(bool(positions(word, rule, start)))

    def add(self, line: str) -> None:
        """记下写好的一行。"""
        self._remember_rhyme(len(self.lines), line)
        self.lines.append(line)
        self._sung += normalise(line)

    def _remember_rhyme(self, index: int, line: str) -> None:
        letter = self._letter(index)
        if letter and self._binds(letter) and letter not in self._classes:
            found = self.readings.get(index) or rhyme_class(line)
            if found is not None:
                self._classes[letter] = found

    def write(self, composer: Any, max_tokens: int | None = None) -> Iterator[str]:
        """写到最后一行（或模型收尾、写满 max_tokens 个词元），逐行给出接在开头之后的文字。

        Args:
            composer: `Composer`，前文是这首歌的开头。
            max_tokens: 没有句式时必须给出。
        """
        start = self._start
        while (index := len(self.lines)) != self.form.lines and (max_tokens is None or self.tokens < max_tokens):
            new_line = "" if index == self._given else "\n"
            if index != self._given and self._opens_section(index):
                composer.feed([self.vocabulary.newline_id])
                new_line += "\n"
            given = self._known(index)
            if given is not None and given.startswith(start):
                composer.feed([*self.encode(given[len(start) :]), self.vocabulary.newline_id])
                text = given
            else:
                draft = self._draft(composer, index, start, max_tokens)
                text = draft.constraint.text
                self.tokens += len(draft.tokens)
                self.ended = draft.constraint.song_ended
                if not text and not self.ended:  # 空的一行是分节，不算一行
                    yield "\n"
                    continue
            self.add(text)
            yield new_line + text[len(start) :]
            start = ""
            if self.ended:
                return
        self.ended = self.form.lines is not None

    def _draft(self, composer: Any, index: int, start: str, max_tokens: int | None) -> Any:
        """写第 index 行。

        Raises:
            LyricsError: 写不出来。
        """
        following = self.encode(self.fixed[index + 1]) if index + 1 in self.fixed else ()
        rules = self._rules(index, start)
        rule = rules[0] if rules else self.rule(index)
        longest = max_tokens - self.tokens if max_tokens and not self.form.given else rule.longest
        several = {"count": len(rules)} if len(rules) > 1 else {}
        for careful in (True, False) if rule.breaks else (True,):
            cycle = itertools.cycle(dataclasses.replace(rule, careful=careful) for rule in rules)
            new = functools.partial(self._next_constraint, index, start, cycle)
            may_cut = not self.form.given
            draft = composer.line(new, longest, self._repeats, following, may_cut=may_cut, **several) if rules else None
            if draft is not None:
                self.relaxed += [] if careful else [index]
                return draft
        word = self._places.get(index)
        if word is None or not any(self._known(later) is None for later in range(index + 1, self.form.lines or 0)):
            raise LyricsError(unwritable(index, rule, self.vocabulary, word, bool(self._refusers)))
        self._start, self.lines = "", [*self.lines, ""]  # 这一行写不进去：换到后面的行
        try:
            self._place_keywords()
        finally:
            self.lines.pop()
        return self._draft(composer, index, start, max_tokens)

    def _next_constraint(self, index: int, start: str, rules: Iterator[LineRule]) -> LineConstraint:
        return self.constraint(index, start, next(rules))

    def constraint(self, index: int, start: str = "", rule: LineRule | None = None) -> LineConstraint:
        """写第 index 行的新约束；rule 可换掉句式里的规矩。"""
        return LineConstraint(self.vocabulary, rule or self.rule(index), start, self.copied, self._following(index))

    @functools.cached_property
    def _refusers(self) -> list[tuple[Callable[[str], bool], int]]:
        """不许照抄的：（有没有这个片段，片段的字数）。"""
        found: list[tuple[Callable[[str], bool], int]] = []
        if self.max_copy:
            found.append((self.copies.contains, self.max_copy + 1))
        if self.form.example:
            found.append((self.form.example.__contains__, EXAMPLE_SPAN))
        return found

    def copied(self, line: str, new: int) -> bool:
        """写好的行再接上 line（可唱的字），末尾 new 个字里有没有哪一个使照抄超过 max_copy，或抄了样例。"""
        for contains, span in self._refusers:
            text = (self._sung + line)[-(span - 1 + new) :]
            ends = range(max(span, len(text) - new + 1), len(text) + 1)
            if any(contains(text[end - span : end]) for end in ends):
                return True
        return False

    def _repeats(self, draft: Any) -> bool:
        return normalise(draft.constraint.text) in {normalise(line) for line in self.lines}

    def _letter(self, index: int) -> str | None:
        """第 index 行在韵式里的字母；不押的是 None。"""
        if self.form.rhyme == "none":
            return None
        if self.form.patterned:
            return self.form.line(index).letter or None
        place = index - next((start for start, length, _ in self._spans() if start <= index < start + length), 0)
        letter = self.form.scheme[place % len(self.form.scheme)]
        return None if letter == "X" else letter

    @functools.cached_property
    def _letters(self) -> list[str]:
        """韵式里的字母，不押的不在内。"""
        form = self.form
        return (
            [line.letter for line in form.pattern if line.letter] if form.patterned else [*form.scheme.replace("X", "")]
        )

    @property
    def _main_letter(self) -> str:
        """--rhyme 说的是这个字母的韵：第一个出现不止一次的；都只出现一次时是第一个。"""
        letters = self._letters
        return next((letter for letter in letters if letters.count(letter) > 1), "".join(letters[:1]))

    def _binds(self, letter: str) -> bool:
        return self._letters.count(letter) > 1 or letter == self._main_letter

    def _rhymes(self, index: int) -> frozenset[str | None] | None:
        letter = self._letter(index)
        if letter is None:
            return None
        if letter in self._classes:
            return frozenset({self._classes[letter]})
        free = frozenset(RHYME_CLASSES) - set(self._classes.values())
        return free if self._binds(letter) else free | {None}

    def _spans(self) -> list[tuple[int, int, str]]:
        """各段的（首行，行数，名称）。"""
        spans, start = [], 0
        for name, count in self._sections:
            spans.append((start, count, name))
            start += count
        return spans

    def _opens_section(self, index: int) -> bool:
        return any(start == index for start, _, _ in self._spans())

    def twins(self, index: int) -> list[int]:
        """与第 index 行一字不差的其他各行：同一个标记的，或重复的段落里同一个位置的。"""
        return [other for other in self._same_words.get(index, []) if other != index]

    @functools.cached_property
    def _same_words(self) -> dict[int, list[int]]:
        groups: dict[str, list[int]] = {}
        for index in range(self.form.lines or 0):
            if mark := self.form.line(index).mark:
                groups.setdefault(mark, []).append(index)
        found = {index: group for group in groups.values() for index in group}
        spans = self._spans()
        for place, (start, length, name) in enumerate(spans):
            if self.form.sections[place][1] == 0:
                source = next(begin for begin, _, earlier in reversed(spans[:place]) if earlier == name)
                for line in range(length):
                    group = found.setdefault(source + line, [source + line])
                    group.append(start + line)
                    found[start + line] = group
        return found

    def _known(self, index: int) -> str | None:
        """不必写的一行：已定的，或与已定、已写的某一行一字不差。"""
        if index in self.fixed:
            return self.fixed[index]
        twins = self.twins(index)
        settled = (self.fixed[twin] for twin in twins if twin in self.fixed)
        return next(settled, next((self.lines[twin] for twin in twins if twin < min(index, len(self.lines))), None))

    def _following(self, index: int) -> str:
        """紧接在第 index 行之后的已定的行里，查照抄要用的开头几个可唱的字。"""
        sung, longest = "", max((span - 1 for _, span in self._refusers), default=0)
        while len(sung) < longest and (line := self._known(index := index + 1)) is not None:
            sung += normalise(line)
        return sung[:longest]


def unwritable(index: int, rule: LineRule, vocabulary: Vocabulary, word: str | None, copying: bool) -> str:
    """第 index 行写不出来：说要的是哪几样；去掉哪一样就有字可用。"""
    length = shape_text(FormLine(rule.least, rule.most, rule.breaks)).replace("~", "–")
    rhymes = rule.rhymes or frozenset()
    demands: list[tuple[str, dict[str, Any]]] = [(f"停顿 {length}" if rule.breaks else f"{length} 字", {"breaks": ()})]
    if rule.tones.strip("中"):
        demands.append((f"平仄 {rule.tones}", {"tones": ""}))
    if rhymes:
        demands.append((f"押{''.join(map(str, rhymes))}辙" if len(rhymes) == 1 else "韵", {"rhymes": None}))
    if rule.first:
        demands.append((f"藏头「{rule.first}」", {"first": ""}))
    if word:
        demands.append((f"关键词「{word}」", {"keyword": None}))
    asked = "、".join(name for name, _ in demands) + "、不照抄" * copying
    way = "请放宽一项"
    if rule.least == rule.most and not reachable(vocabulary, rule)[0]:
        freeing = [name for name, without in demands if reachable(vocabulary, dataclasses.replace(rule, **without))[0]]
        way = f"去掉 {' 或 '.join(freeing)} 就有" if freeing else way
    return f"第 {index + 1} 行写不出来：没有字合乎 {asked}；{way}"
