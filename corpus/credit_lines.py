"""单看一行，像不像制作信息：名目、值、各种写法。"""

import re
from typing import NamedTuple

from corpus.credit_words import (
    CERTAIN,
    COMMON,
    ENGLISH_CERTAIN,
    ENGLISH_COMMON,
    ENGLISH_MODIFIERS,
    MODIFIERS,
    POETIC,
    SURNAMES,
    simpler,
)

HAN = r"\u3400-\u9fff\U00020000-\U000323af"


def _any_of(words: list[str]) -> str:
    return "|".join(sorted(map(re.escape, set(words)), key=len, reverse=True))


_HAN_WORDS = frozenset(CERTAIN + COMMON + MODIFIERS)
_LONGEST_WORD = max(map(len, _HAN_WORDS))
_LATIN_WORDS = frozenset(ENGLISH_CERTAIN + ENGLISH_COMMON + ENGLISH_MODIFIERS + "a b c d i ii iii no".split())
_KEY_PARTS = re.compile(rf"([{HAN}\u3040-\u30ff]+)|([a-z&]+)|\d{{1,2}}(?!\d)|[\s/／、,，＆+＋·・.．\-–—_()（）|｜@＠']")


def _is_key(key: str) -> bool:
    """是不是全由名目的词、数与分隔符组成。"""
    place = 0
    while place < len(key):
        part = _KEY_PARTS.match(key, place)
        if part is None:
            return False
        if (part[1] and not _made_of_words(part[1])) or (part[2] and part[2] not in _LATIN_WORDS):
            return False
        place = part.end()
    return True


def _made_of_words(han: str) -> bool:
    """能不能切成名目的词；逐字往前，不回头。"""
    reached = {0}
    for start in range(len(han)):
        if start in reached:
            ends = range(start + 1, min(len(han), start + _LONGEST_WORD) + 1)
            reached.update(end for end in ends if han[start:end] in _HAN_WORDS)
    return len(han) in reached


_CERTAIN_IN_KEY = re.compile(
    rf"{_any_of(CERTAIN)}|(?<![a-z])(?:{_any_of(ENGLISH_CERTAIN)})(?![a-z])|作\s*词|作\s*曲|编\s*曲|制\s*作\s*人"
)
_CERTAIN_AT_END = re.compile(
    rf"^(?:{_any_of(CERTAIN)})|(?:{_any_of(CERTAIN)})(?:师|人|室|棚|公司|团队|助理|统筹|工程)?$"
)
_COMMON_IN_KEY = re.compile(rf"{_any_of(COMMON)}|(?<![a-z])(?:{_any_of(ENGLISH_COMMON)})(?![a-z])")

_ORGANISATION = re.compile(
    r"公司|宣传部|文化局|旅游局|剧院|艺术团|文工团|电影厂|制片厂|文学城|小组|小組|委员会|居委会|村委会|合唱队|连队|"
    r"四重奏|委員會|事工|有限|集团|"
    r"工作室|录音|录影|音乐|文化|传媒|娱乐|唱片|影业|影视|出版|制作|乐团|乐队|合唱团|交响|爱乐|联盟|厂牌|学院|学校|"
    r"中学|小学|大学|电视台|"
    r"电台|论坛|网络|协会|基金|剧组|团队|全体|事务所|棚|製作|錄音|音樂|樂團|樂隊|傳媒|娛樂|文化|唱片|"
    r"\b(?:studios?|music|records?|entertainment|ltd|inc|limited|productions?|publishing|company|group|media|audio|"
    r"sound|"
    r"orchestra|band|choir|lab|official|mastering|strings|sisters|brothers)\b",
    re.I,
)
SENTENCE = re.compile(
    r"[我你妳您祢咱]|(?:[吗嗎呢吧啊呀哦喔嘛噢唉哟嗨]|[！!？?。])$|……|——|他们|她们|请|一个|一片|一场|一只|一张|一起|谁|"
    r"誰|什么|甚麼|怎么"
)
_NEVER_IN_NAMES = re.compile("[的了着著是在就把被让讓给給跟这這那哪她他它嘅咗唔]")
FUNCTION = re.compile(
    r"[的了着著是在不没沒就都也又再还還很太最把被让讓给給从從到跟这這那哪嘅咗唔它她他地得过過来來去里裡成与與]"
)
SPEAKER = re.compile(
    r"(?:(?<![传首吟重梵演翻配合对对伴独独领轮帮主原齐傳對獨領幫齊])唱|"
    r"[说說道问問喊讲講话話答想写寫叫骂哭笑吼念听看曰]|[告訴诉]|[上下里裡中前后後外头頭边邊])$"
)


# ---------------------------------------------------------------------------
# 值
# ---------------------------------------------------------------------------

VERSE, ODD, NAMELIKE, NAME = range(4)  # 是一句话；有虚字；短得像名字；名字或公司

_BRACKETED = re.compile(r"[(（\[［【〔<《「『〖“\"][^)）\]］】〕>》」』〗”\"]*[)）\]］】〕>》」』〗”\"]?")
BETWEEN_NAMES = re.compile(r"[/／、,，;；&＆+＋·・•|｜\s]+|\s(?:and|x|feat\.?|at|@)\s", re.I)
_FIRST_HAN = re.compile(rf"[{HAN}]")


_SPACED_NAME = re.compile(rf"^[{HAN}](?:\s+[{HAN}]){{1,3}}$")
_BOOK = re.compile(r"^《[^《》]{1,30}》(?:[\s、，,/]*《[^《》]{1,30}》)*$")


def value_kind(value: str) -> int:
    """冒号后面的是 VERSE、ODD、NAMELIKE 还是 NAME。"""
    value = value.strip(" \t：:；;，,、/／。.|｜")
    if not value:
        return NAMELIKE
    if _SPACED_NAME.match(value):  # 「安  然」
        value = re.sub(r"\s+", "", value)
    if _BOOK.match(value):
        return NAME
    if "《" in value:
        return NAMELIKE
    if re.search(r"[:：]", value):
        return ODD
    if len(re.findall(r"\b[a-z']{2,}\b", value)) > 3 or re.search(r"\b(\w+)[ ,]+\1\b", value, re.I):
        return VERSE
    if SENTENCE.search(value):
        return VERSE
    bare = _BRACKETED.sub(" ", value).strip() or value
    if _ORGANISATION.search(value) and len(bare) <= 40:
        return NAME
    names = [name for name in BETWEEN_NAMES.split(bare) if name and name.strip("-–—~～.…*")]
    if not names:
        return NAME
    kinds = sorted(map(name_kind, names))
    if len(names) > 1 and kinds[0] >= NAMELIKE:
        return kinds[-1]
    if len(names) > 2:  # 多数是名字就是一列名字
        return max(kinds[0], min(kinds[len(names) // 3], NAMELIKE))
    if len(names) == 1 and names[0] in POETIC:
        return VERSE
    return kinds[0]


_NUMERALS = "一二三四五六七八九十壹贰叁肆伍陆柒捌玖拾"


def name_kind(name: str) -> int:
    han = len(re.findall(rf"[{HAN}]", name))
    if not han:
        if name.islower():
            return NAMELIKE if len(name) <= 3 else ODD
        return NAME
    if "某" in name and han <= 8:
        return NAME
    if name[0] in "@＠" or re.search("(?:老师|老師|先生|师傅|師傅)$", name):
        return NAME
    if han > 1 and han <= 4 and name[0] in SURNAMES and re.search(rf"([{HAN}])\1\1$", name):
        return NAMELIKE  # 「苏小小小」
    if han > 10 or re.search(rf"([{HAN}])\1\1", name):
        return VERSE
    if han <= 3 and (name[0] in "小老阿" or (han > 1 and name[0] in SURNAMES and not _NEVER_IN_NAMES.search(name))):
        return NAME
    if FUNCTION.search(name):
        return ODD if han <= 6 else VERSE
    if han > 4 or (han == 1 and len(name) == 1 and name not in SURNAMES and name not in _NUMERALS):
        return ODD
    return NAME if (name[0] in SURNAMES and han <= 4) or re.search(r"[A-Za-z0-9]", name) else NAMELIKE


# ---------------------------------------------------------------------------
# 行
# ---------------------------------------------------------------------------

NOTHING, VERSE_LIKE, LOOSE, SHAPED, WEAK, COMMON_CREDIT, CREDIT = range(7)  # 越大越肯定是制作信息

DECORATION = " \t★☆※＊*♪♫♬•·●○◆◇■□▲△▶►>＞~～=＝#＃_－—–-|｜"
_LIST_NUMBER = re.compile(r"^(?:\(?\d{1,2}\)|（\d{1,2}）|\d{1,2}[.、．)])\s*(?=\D)")
OUTER = re.compile(r"^[\[［【〔{(（〖<《「](.{2,60}?)[\]］】〕})）〗>》」]$")
_BRACKETED_KEY = re.compile(r"^[\[［【〔{(（〖<〈《「『](.{1,12}?)[\]］】〕})）〗>〉》」』]\s*[:：]?\s*(.+)$")
COLON = re.compile(r"\s*[:：︰∶﹕]\s*")
_OTHER_MARK = re.compile(
    r"\s*(?:=+|→|>{1,2}|＞+|~|～|\.{2,}|…+|·+|・|•|﹒|‧|●|。|;|；|\||｜|丨|_+|@|[★☆◆◇]+|/|／|"
    r"(?<=[^\sA-Za-z])[-–—─－](?=\S)|(?<=\s)[-–—─－]{1,3}(?=\s))\s*"
)
_LOOSE_MARK = re.compile(r"\s+")
_ENGLISH_BY = re.compile(r"^(?P<key>(?:[A-Za-z&/,.'\-]+\s+){0,6}(?:by|at|@))[:：]?\s+(?P<value>\S.*)$", re.I)
_BY_VERBS = re.compile(
    r"\b(?:lyrics?|music|words?|written|compos|arrang|produc|prod|mix|master|record|engineer|perform|vocal|publish|"
    r"distribut|"
    r"design|translat|edit|program|direct|illustrat|bv|cover|promot|sung|admin|arr\b|orchestrat|mastered|strings|"
    r"drums|guitar|bass|piano)",
    re.I,
)
_SUFFIXED = re.compile(
    rf"^(?:[{HAN}]{{2,4}}(?:、[{HAN}]{{2,4}})*|[A-Z][\w .]{{1,14}})(?:作)?(?:词曲|作词|作曲|编曲|[词曲編编])$"
)
_ROLE_AFTER = re.compile(  # 「张某 词」「阿宽编曲」「Bobo（贝斯）」
    rf"^(?P<name>[{HAN}A-Za-z0-9][{HAN}A-Za-z0-9 .]{{0,14}}?)"
    rf"(?:\s*[(（\[](?=[^)）\]]+[)）\]]$)|\s+(?=[{HAN}]{{1,4}}$)|(?=(?:词曲|作词|作曲|编曲|制作|填词|出品|发行)+$))"
    r"(?P<role>[^)）\]]{1,12}?)[)）\]]?$"
)
_BESIDE = re.compile(r"[|｜]\s*(?=[^:：|｜]{1,24}[:：])|/\s*(?=[A-Za-z][A-Za-z &]{1,20}[:：])")  # 「甲 | 编：乙」
_ROLES_AFTER = re.compile(r"^([^:：]{1,20}?)\s*(?:[-–—|｜]|[:：])\s+?(\S[^:：]{0,50})$")  # 「Qux – guitar, bass」
_SHORT_BY = re.compile(r"^(?:prod|feat|ft|arr|mix|lyr|comp|vox)\.\s*(?:by\s)?(\S.{0,24})$", re.I)
_GLUED_BY = re.compile(rf"^([{HAN}/、&]{{1,8}})\s*by[ :：]?\s*(\S.{{0,30}})$", re.I)
_AGAIN = re.compile(
    rf"(?<=[\s/／;；,，|｜、&。])(?=(?:{_any_of(CERTAIN)}|{_any_of([w for w in COMMON if len(w) > 1])}|"
    rf"[词曲编唱监])(?:[/／、&](?:{_any_of(CERTAIN)}|"
    rf"{_any_of([word for word in COMMON if len(word) > 1])}))*\s*[:：])"
)


def _split_credits(value: str) -> list[str]:
    """一行几项：「甲 作曲：乙 编曲：丙」→ 各项的值。"""
    parts = [piece for part in _AGAIN.split(simpler(value)) for piece in _BESIDE.split(part)]
    return [parts[0]] + [COLON.split(part, maxsplit=1)[-1] for part in parts[1:]]


def key_kind(key: str) -> int:
    """名目：CREDIT（一见就是）、COMMON_CREDIT（也会唱到的词）或 NOTHING（不全是名目的词）。"""
    key = simpler(key).lower().strip(DECORATION)
    if not key or len(key) > 60:
        return NOTHING
    joined = re.sub(rf"(?<=[{HAN}])[ \u3000\xa0]+(?=[{HAN}])", "", key)  # 「作 词」
    if not _is_key(joined):
        if len(joined) > 24 or SENTENCE.search(joined) or FUNCTION.search(joined) or SPEAKER.search(joined):
            return NOTHING
        return COMMON_CREDIT if _CERTAIN_AT_END.search(joined) else NOTHING
    if _CERTAIN_IN_KEY.search(joined):
        return CREDIT
    return COMMON_CREDIT if _COMMON_IN_KEY.search(joined) else NOTHING


class Line(NamedTuple):
    level: int
    names: str = ""  # 值，供认出单独成行的人名
    certain: bool = False  # 名目是一见就是的那种
    waiting: bool = False  # 值在下一行
    role: bool = False  # 名目全由名目的词组成


def _with_value(key: int, value: str, colon: bool, key_text: str = "") -> Line:
    """名目（key_text）与值合起来看。"""
    return _judge(key, value, colon, key_text)._replace(role=True)


def _judge(key: int, value: str, colon: bool, key_text: str) -> Line:
    kinds = [value_kind(part) for part in _split_credits(value)]
    kind, certain = min(kinds), key == CREDIT
    several = len(kinds) > 1
    if colon and not value.strip():
        return Line(CREDIT if certain else WEAK, certain=certain, waiting=True)
    if _PUBLISHER.fullmatch(key_text) and kind < NAME:  # OP、SP 的值该是公司
        return Line(LOOSE, value)
    if certain:
        if kind == NAME or (colon and kind >= NAMELIKE and not several):
            return Line(CREDIT, value, True)
        if colon and kind == ODD and 1 < len(value) <= 24:
            sung = (FUNCTION.search(value) is not None or value.islower()) and len(re.findall("[/、&]", key_text)) < 2
            return Line(SHAPED if sung else CREDIT, value, not sung)
        if several and kind >= NAMELIKE:
            known = re.search(r"作词|作曲|填词|编曲|谱曲", simpler(key_text + value))
            return Line(CREDIT if known else WEAK, value, bool(known))
        if kind == NAMELIKE:
            return Line(WEAK, value)
        if kind == ODD:
            return Line(SHAPED if len(value) <= 4 else LOOSE, value)
        return Line(LOOSE if colon and len(value) <= 6 else VERSE_LIKE, value)
    if kind == NAME:
        return Line(COMMON_CREDIT if colon else WEAK, value, several)
    if several and kind >= NAMELIKE and max(kinds) == NAME:
        return Line(COMMON_CREDIT, value, True)
    if kind == NAMELIKE:
        return Line(WEAK if colon else SHAPED, value)
    short = len(value) <= 4 if FUNCTION.search(value) else len(value) <= 12
    if kind == ODD:
        return Line(SHAPED if short else LOOSE, value)
    return Line(VERSE_LIKE, value)


_BILINGUAL = re.compile(rf"^(?:[{HAN}/、 ]{{1,10}})?\s*[A-Za-z][A-Za-z&/'. \-]{{0,30}}$")
_PUBLISHER = re.compile(r"[\s/／.opsOPS]{2,8}")
_PUBLISHER_OR_CODE = re.compile(r"(?:op|sp|isrc|[\s/])+", re.I)
_VOICE_KEYS = frozenset(
    "男 女 合 男声 女声 合唱 男女 齐唱 齐 童声 对唱 独唱 领唱 伴唱 说唱 rap Rap RAP 和声 旁白 独白 念白".split()
)


def look_at(line: str) -> Line:
    """单看一行，像不像制作信息：依次试各种写法，第一种对得上的说了算。"""
    bare = _LIST_NUMBER.sub("", line.strip(DECORATION)).strip(DECORATION)
    inner = OUTER.match(bare)
    if inner and not re.search(r"[\])）】]", inner[1]):
        bare = inner[1].strip(DECORATION)
    bare = re.sub(r"^《[^》]{1,20}》\s*(?=[^:：]{1,8}[:：])", "", bare)
    if not bare:
        return Line(NOTHING)
    colon = COLON.search(bare)
    if colon:
        return _with_colon(bare[: colon.start()], bare[colon.end() :])
    for look in (_with_by, _in_brackets, _in_pairs, _with_mark, _name_first):
        written = look(line.strip(DECORATION) if look is _in_brackets else bare)
        if written is not None:
            return written
    alone = key_kind(bare)
    if alone and (len(bare) <= 6 or bare.isascii() and len(bare) <= 24):
        return Line(NOTHING, waiting=True)
    return Line(NOTHING)


def _with_colon(key: str, value: str) -> Line:
    """「作词：甲」，和名目没见过的「打杂：己」。"""
    if simpler(key).strip(DECORATION) in _VOICE_KEYS and value_kind(value) < NAME:
        return Line(NOTHING)  # 「合唱：今夜的风」：谁来唱，唱词留下
    found = key_kind(key)
    if found:
        return _with_value(found, value, True, key)
    ahead = key_kind(re.split(r"[（(@]", key)[0]) if re.search(r"[（(@]", key) else NOTHING  # 「录音（北京）：甲」
    if ahead:
        return _with_value(ahead, value, True)
    long = len(key) > 24 or (len(key) > 12 and not _BILINGUAL.match(key))
    if long or SPEAKER.search(simpler(key)) or SENTENCE.search(key):
        return Line(VERSE_LIKE)
    if not value.strip():
        return Line(NOTHING, value)
    kind, latin = value_kind(value), not _FIRST_HAN.search(key)
    if kind >= NAMELIKE and (key[:1].isupper() or not latin):
        return Line(SHAPED, value)
    if (kind == ODD or (kind > ODD and latin)) and len(key) <= 24 and len(value) <= 16:
        return Line(LOOSE, value)
    return Line(VERSE_LIKE, value)


def _with_by(bare: str) -> Line | None:
    """「Produced by Foo」「Prod. Foo」「作曲by甲」。"""
    by = _ENGLISH_BY.match(bare)
    if by and _BY_VERBS.search(by["key"]) and key_kind(by["key"]):
        value = by["value"]
        proper = not value[:1].islower() and value_kind(value) >= ODD
        return Line(CREDIT if proper else VERSE_LIKE, value if proper else "", proper)
    short = _SHORT_BY.match(bare)
    if short and value_kind(short[1]) >= NAMELIKE:
        return Line(COMMON_CREDIT, short[1])
    glued = _GLUED_BY.match(bare)
    if glued and key_kind(glued[1]):
        return _with_value(key_kind(glued[1]), glued[2], True)
    return None


def _in_brackets(line: str) -> Line | None:
    """「【作词】甲」。"""
    found = _BRACKETED_KEY.match(line)
    kind = key_kind(found[1]) if found and re.search(r"\w", found[2]) else NOTHING
    return _with_value(kind, found[2], kind == CREDIT or line[0] in "【〖『〔") if found and kind else None


def _with_mark(bare: str) -> Line | None:
    """「作词/甲」「作词=甲」「作词 甲」。"""
    for mark in (_OTHER_MARK, _LOOSE_MARK):
        for place in mark.finditer(bare):
            key, value = bare[: place.start()], bare[place.end() :]
            found = key_kind(key) if value else NOTHING
            spelled = mark is _LOOSE_MARK and _PUBLISHER_OR_CODE.fullmatch(key) and not _ORGANISATION.search(value)
            if found and not spelled:
                value = "@" + value if "@" in place[0] else value
                if mark is _OTHER_MARK:
                    clear = not mark.search(value.lstrip("@"))
                else:
                    clear = key.isascii() and len(value) <= 8 and not value.isascii()
                return _with_value(found, value, clear and value_kind(value) >= NAMELIKE)
            if place.start() > 30:
                break
    return None


def _in_pairs(bare: str) -> Line | None:
    """「词 林小北 曲 大川」「杜若 词 谢长安 曲」。"""
    tokens = bare.split()
    if len(tokens) > 3 and len(tokens) % 2 == 0:
        for keys, names in ((tokens[::2], tokens[1::2]), (tokens[1::2], tokens[::2])):
            if all(map(key_kind, keys)) and all(value_kind(name) == NAME for name in names):
                return Line(COMMON_CREDIT, " ".join(names), True)
    return None


def _name_first(bare: str) -> Line | None:
    """「张某 词」「李小水词 王二山曲」「Bobo（贝斯）」「Qux – guitar, bass」。"""
    reverse = _ROLES_AFTER.match(bare)
    if reverse and key_kind(reverse[2]) and value_kind(reverse[1]) == NAME:
        return Line(WEAK, reverse[1])
    words = re.split(r"[\s,，;；]+", simpler(bare))
    if len(words) <= 4 and all(map(_SUFFIXED.match, words)):
        names = [re.sub("作?[词曲编作]+$", "", word) for word in words]
        if all(value_kind(name) >= NAMELIKE for name in names):
            return Line(CREDIT if len(words) > 1 else WEAK, "", len(words) > 1)
    suffix = _ROLE_AFTER.match(simpler(bare))
    role = key_kind(suffix["role"]) if suffix else NOTHING
    if suffix and role:
        kind = value_kind(suffix["name"])
        if kind == NAME:
            return Line(COMMON_CREDIT if role == CREDIT and " " in bare else WEAK, suffix["name"])
        if kind == NAMELIKE and len(suffix["name"].strip()) <= 4 and (bare[-1] in ")）]" or role == CREDIT):
            return Line(WEAK, suffix["name"])
    return None
