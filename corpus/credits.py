"""一首歌里不是唱出来的行：制作信息、声明、段落标记。

制作信息按结构认，不按「冒号前有某个字」认：

1. 名目是一个完整的词（全由名目的词组成：「弦乐录音室」是，「录音机里」不是），值是人名、一列人名或公司；
2. 这样的行连成一块，多在开头或结尾；块里不认识的名目（「打杂：己」）随着块走；
3. 名目像而值是一句话的行（「制作：一个梦」）说明这一带是唱词，模棱两可的邻行也就留下。
"""

import re
from itertools import pairwise, product

from corpus.credit_lines import (
    BETWEEN_NAMES,
    COLON,
    COMMON_CREDIT,
    CREDIT,
    DECORATION,
    FUNCTION,
    HAN,
    LOOSE,
    NAME,
    NAMELIKE,
    NOTHING,
    OUTER,
    SENTENCE,
    SHAPED,
    SPEAKER,
    VERSE_LIKE,
    WEAK,
    Line,
    look_at,
    name_kind,
    value_kind,
)
from corpus.credit_words import simpler
from corpus.notices import VOICES, is_notice, is_part

_ORGANISATION_ALONE = re.compile(
    r"^\W*[\w·]{2,16}(?:合唱团|合唱隊|合唱队|乐团|樂團|乐队|樂隊|工作室|公司|录音室|錄音室|录音棚|錄音棚)\W*$"
)
PART = "段落标记"  # 去掉它的地方是一节的开头
LONGEST_CREDIT = 400  # 更长的一行不是制作信息
EDGE = 4  # 块从头几行之内开始，或到末几行之内为止，算在开头或结尾
_TITLE_WORDS = re.compile(
    r"(?:主题|片头|片尾|插|推广|宣传|推介|原创|同人|企划|印象|角色|毕业|团|校|队|班)曲|校歌|班歌|队歌|\bOST\b|原声|"
    r"电视剧|电影|动漫|游戏|"
    r"第[\d一二三四五六七八九十百]+[首期弹辑集届]|歌词$|\blyrics$|\bcover\W*$|[片主插]题?[头尾]?曲|アニメ|主題歌|"
    r"テーマ|儿歌|民歌|^\W*(?:track|no\.)\W*\d+",
    re.I,
)
_TITLE = re.compile(
    r"^.{1,40}?\s*[-–—－]\s*.{1,40}$|^\W*《[^》]{1,40}》.{0,16}$|^.{0,10}《[^》]{1,30}》\W*$|"
    r"^\d{1,3}[.、．]\s*\S.{0,40}$"
)
# 只有汉字与常见标点的行，没有这些词就不必细看。写成一个个开头确定的词，正则引擎一扫就过。
_PLAIN = re.compile(rf"[{HAN}\n，。、！？；“”‘’… ○□]*")
_HINTS = (
    "[作填译譯改][词詞曲] [编編][曲词詞舞剧劇] [词詞]曲 [监監][制製] [制製]作 [演原翻主独獨领領伴合齐齊对對]唱 "
    "[录錄]音 混音 [缩縮]混 母[带帶] [纯純]音 "
    "[未没沒][经經有] 版[权權] 著作 歌[词詞] 歌手 [间間前尾伴]奏 副歌 主歌 [导導]歌 [过過][门門渡场場] [桥橋]段 "
    "[独獨念旁口对對]白 [重反][唱复複覆] "
    "[请請]勿 不得 禁止 谢[绝絕] [后後]期 [统統][筹籌] [企策][划劃] 出品 [摄攝]制 [发發]行 [和合][声聲] 吉他 "
    "[贝貝]斯 [钢鋼]琴 [键鍵][盘盤] 曲[绘繪] 海[报報] "
    "[仅僅]供 [鸣鳴][谢謝] 感[谢謝恩] [授侵][权權] 提供 上[传傳] [该該本此][作曲歌] 主[题題] 插曲 片[头頭尾] 校歌 "
    "[乐樂][队隊团團] [导導]演 [宣推][传傳广廣] [赞贊]助 "
    "[词詞曲编編唱录錄鼓笛箫簫筝箏胡琴]_ [词詞曲唱完终終声聲奏首节節]/ 开[场場]/ [过過]_"
).split()


def _spelled_out(hint: str) -> list[str]:
    """「[作填]曲」→ 作曲、填曲；_ 是空格，/ 是行尾。"""
    sets = [part[1] or part[0] for part in re.finditer(r"\[([^\]]+)\]|.", hint)]
    return ["".join(letters).replace("_", " ").replace("/", "\n") for letters in product(*sets)]


_MAYBE = re.compile("|".join(word for hint in _HINTS for word in _spelled_out(hint)))


def maybe_credits(text: str) -> bool:
    """有没有哪一行值得细看。"""
    return not _PLAIN.fullmatch(text) or _MAYBE.search(text + "\n") is not None


def find_credits(lines: list[str], name: str = "") -> dict[int, str]:
    """一首歌的各行（可含空行）里不是唱词的：{行号: 原因}。

    Args:
        name: 歌名；开头一行只写歌名而下面是制作信息时，那一行也不是唱词。
    """
    found: dict[int, str] = {}
    places = [place for place, line in enumerate(lines) if line.strip()]
    looks: dict[int, Line] = {}
    for place in places:
        if len(lines[place]) > LONGEST_CREDIT or not maybe_credits(lines[place]):
            looks[place] = Line(NOTHING)
        elif is_notice(lines[place]):
            found[place], looks[place] = (
                (PART, Line(NOTHING)) if is_part(lines[place]) else ("声明", Line(CREDIT, certain=True))
            )
        elif is_part(lines[place]):
            found[place], looks[place] = PART, Line(NOTHING)
        else:
            looks[place] = look_at(lines[place])
    _take_next_lines(lines, places, looks)
    counted = [place for place in places if found.get(place) != PART]
    for again in (False, True):
        certain = sum(looks[place].level >= COMMON_CREDIT for place in places)
        for run in _runs(counted, looks):
            for place in _credits_of(run, looks, places, certain):
                found.setdefault(place, "制作信息")
        if again or not _know_names(lines, places, looks, found):
            break
    for place, after in pairwise(places):  # 上一行的名单没有写完
        indented = lines[after][:1] in " \u3000\t" and len(lines[after].strip()) > 4
        listed = indented and looks[after].level <= SHAPED and value_kind(lines[after]) == NAME
        if listed and found.get(place) == "制作信息":
            found.setdefault(after, "制作信息")
    for before, place, after in zip(places, places[1:], places[2:], strict=False):  # 夹在中间的一列名字
        if found.get(before) == found.get(after) == "制作信息" and len(lines[place]) <= 40:
            kind = looks[place].level <= SHAPED and re.search("[、/]", lines[place]) and value_kind(lines[place])
            if kind == NAME or _ORGANISATION_ALONE.match(lines[place]):
                found.setdefault(place, "制作信息")
    _take_titles(lines, places, looks, found, name)
    _take_singers(lines, places, looks, found)
    return found


def _take_next_lines(lines: list[str], places: list[int], looks: dict[int, Line]) -> None:
    """「作词：」或「词」之后一行的「甲」。"""
    waiting = {place for place in places if looks[place].waiting}
    pairs = []
    for place, after in pairwise(places):
        if place not in waiting or after in waiting or looks[after].level > SHAPED:
            continue
        kind, colon = value_kind(lines[after]), looks[place].level > NOTHING
        short = len(lines[after].strip()) <= 4
        if kind == NAME or (kind == NAMELIKE and ((colon and len(waiting) > 1) or (short and looks[place].certain))):
            pairs.append((place, after, colon))
    for place, after, colon in pairs:
        if colon or len(pairs) > 1:  # 没有冒号的名目，要有两对才算
            level = CREDIT if looks[place].certain else COMMON_CREDIT
            looks[after] = Line(level, lines[after])
            looks[place] = looks[place]._replace(level=max(level, looks[place].level))


def _names_in(looks: dict[int, Line], found: dict[int, str]) -> set[str]:
    """制作信息里说到的人。"""
    return {
        name.lower()
        for place, reason in found.items()
        if reason == "制作信息"
        for name in BETWEEN_NAMES.split(looks[place].names)
        if len(name) > 1
    }


def _know_names(lines: list[str], places: list[int], looks: dict[int, Line], found: dict[int, str]) -> bool:
    """「念白：一盏茶」：值是制作信息里说到过的人，也是制作信息。返回有没有这样的行。"""
    names, more = _names_in(looks, found), False
    for place in places:
        colon = COLON.search(lines[place])
        if place in found or not colon or looks[place].level >= COMMON_CREDIT:
            continue
        value = lines[place][colon.end() :].strip(DECORATION + "】」）)]")
        parts = [part for part in BETWEEN_NAMES.split(value) if part]
        if parts and all(part.lower() in names for part in parts) and not SPEAKER.search(lines[place][: colon.start()]):
            looks[place], more = Line(COMMON_CREDIT, value), True
    return more


def _runs(places: list[int], looks: dict[int, Line]) -> list[list[int]]:
    """相连的、像「名目 值」的行，一段一段。"""
    runs: list[list[int]] = []
    going = False
    for place in places:
        if looks[place].level > NOTHING:
            if not going:
                runs.append([])
            runs[-1].append(place)
        going = looks[place].level > NOTHING
    return runs


def _credits_of(run: list[int], looks: dict[int, Line], places: list[int], certain: int) -> list[int]:
    """一段里是制作信息的行。"""
    pieces: list[list[int]] = [[]]
    verses = sum(looks[place].level in (VERSE_LIKE, LOOSE) for place in run)
    if _one_block(run, looks, places):
        return run
    splits = (VERSE_LIKE,) if certain >= 2 else (VERSE_LIKE, LOOSE)
    at_edge = run[0] in places[:EDGE] or run[-1] in places[-EDGE:]
    for place in run:
        if looks[place].level in splits:
            pieces.append([])
        else:
            pieces[-1].append(place)
    taken = []
    for piece in filter(None, pieces):
        levels = [looks[place].level for place in piece]
        strong, common, weak = (levels.count(level) for level in (CREDIT, COMMON_CREDIT, WEAK))
        shaped = levels.count(SHAPED)
        if verses and certain < 2 and not strong and common < 2 and verses >= weak + 2 * common:
            continue
        solid = 2 * strong + 2 * common + weak
        whole = strong >= 1 or common >= 2 or (common and weak) or (at_edge and (weak >= 2 or (weak and shaped >= 2)))
        elsewhere = certain - strong - common
        whole = whole or (
            at_edge and ((elsewhere > 1 and weak) or (common and shaped) or (elsewhere > 2 and shaped > 1))
        )
        roles = sum(looks[place].role and not looks[place].waiting for place in piece)
        whole = whole or (at_edge and not verses and roles == len(piece) > 2)
        named = sum(value_kind(looks[place].names) == NAME for place in piece if looks[place].level == SHAPED)
        whole = whole or (at_edge and len(piece) > 3 and named > 1)
        if not whole:
            taken += [place for place in piece if looks[place].level >= COMMON_CREDIT]
            continue
        inside = [place for place in piece if looks[place].level >= WEAK] or piece
        for place in piece:
            level = looks[place].level
            between = inside[0] < place < inside[-1]
            follows = level == SHAPED and (
                solid >= 4 or (at_edge and solid + elsewhere >= 2) or value_kind(looks[place].names) == NAME
            )
            if level >= WEAK or between or (at_edge and follows):
                taken.append(place)
    return taken


def _one_block(run: list[int], looks: dict[int, Line], places: list[int]) -> bool:
    """开头或结尾的一长段「名目：值」，名目都没见过、值也随意，但多数像名字。"""
    if len(run) < 5 or not (run[0] in places[:EDGE] or run[-1] in places[-EDGE:]):
        return False
    levels = [looks[place].level for place in run]
    named = sum(value_kind(looks[place].names) == NAME for place in run)
    return (
        2 * sum(level >= SHAPED for level in levels) > len(levels)
        and levels.count(VERSE_LIKE) <= 0.15 * len(levels)
        and (named > 1 or max(levels) >= COMMON_CREDIT)
    )


def _could_be_title(line: str) -> bool:
    """短，没有标点与虚字，不是一句话。"""
    han = len(re.findall(rf"[{HAN}]", line))
    if SENTENCE.search(line) or FUNCTION.search(line) or re.search(rf"[，。！？,!?]|[{HAN}]\s+[{HAN}]", line):
        return False
    return han <= 8 if han else line.istitle() and len(line) <= 30


def _take_titles(lines: list[str], places: list[int], looks: dict[int, Line], found: dict[int, str], name: str) -> None:
    """制作信息上面的「歌名 - 歌手」「电视剧《…》主题曲」。"""
    credited = [found.get(place) in ("制作信息", "声明") for place in places]
    first = next((index for index, known in enumerate(credited[:EDGE]) if known), 0)
    for place in places[:first]:
        line = lines[place].strip()
        rest = line.strip(DECORATION)[len(name) :] if name and line.strip(DECORATION).startswith(name) else None
        own = rest is not None and re.match(r"$|\s*[-–—－/／(（《]", rest)
        bare = first == 1 and credited[1:3] == [True, True] and _could_be_title(line)
        if own or bare or _TITLE.match(line) or _TITLE_WORDS.search(simpler(line)):
            found[place] = "歌名行"
    for index, place in enumerate(places):  # 制作信息之间、之后的「（电视剧《…》片尾曲）」
        line = lines[place].strip()
        beside = any(credited[max(0, index - 1) : index + 2])
        if beside and place not in found and "《" in line and (_TITLE_WORDS.search(simpler(line)) or OUTER.match(line)):
            found[place] = "歌名行"


_LABEL = re.compile(rf"^\s*(?:[{HAN}/、&]{{1,5}}|[A-Z][\w .]{{0,12}})\s*[:：]\s*$")


def _take_singers(lines: list[str], places: list[int], looks: dict[int, Line], found: dict[int, str]) -> None:
    """制作信息里说到的人，单独成行的是「谁来唱」的标记。"""
    names = _names_in(looks, found)
    labels = [
        place
        for place in places
        if place not in found and _LABEL.match(lines[place]) and not SPEAKER.search(lines[place].strip(" :："))
    ]
    known = any(
        lines[place].strip(" :：").lower() in names
        or VOICES.match(lines[place])
        or name_kind(lines[place].strip(" :：")) == NAME
        for place in labels
    )
    if known and len({lines[place].strip() for place in labels}) > 1:  # 「老猫：」「阿布：」各占一行，轮流唱
        for place in labels:
            found[place] = PART
    for place in places:
        if place in found:
            continue
        line = lines[place].strip()
        label = line.strip("[［【（(〔<]］】）)〕>:： ")
        if label != line and label.lower() in names:
            found[place] = PART
