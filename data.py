"""歌词文件 → 词元批次。

1. 读取：`*.json`、`*.jsonl`、`*.txt`、`*.lrc`，UTF-8（可带 BOM）或 GB18030。
2. 清洗：去掉制作信息、时间标签、段落标记、HTML 残留和控制字符，一行一句。
3. 去重：内容相同或大半相同的歌（现场版、翻唱）只留先读到的一首。
4. 划分：按歌词内容的哈希分到训练集或验证集，所以加歌不会让旧歌换边。
5. 编码：每首歌 `<s> [<title> 歌名] [<singer> 歌手] <lyric> 行\\n行… </s>`，写成 uint16 缓存。
6. 批次：第 n 步的批次只由 (种子, n) 决定，接着训练时不必重放。
"""

import codecs
import contextlib
import functools
import hashlib
import html
import json
import math
import os
import re
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tokenizer as tokenizer_module
from tokenizer import Tokenizer, TokenizerError

CLEANING_VERSION = 1  # 清洗、去重或编码的规则有变时加一，旧缓存随之重建
SAMPLE_FILE = "sample.json"  # 自带样例，没有别的歌词文件时才用
SUFFIXES = (".json", ".jsonl", ".txt", ".lrc")
FEWEST_HAN = 10  # 少于这么多汉字的不算一首中文歌
LONGEST_NAME = 40  # 歌名、歌手最多取这么多字
MOST_REPEATS = 100  # LRC 的一行最多重复这么多次

Say = Callable[[str], None]


class CorpusError(ValueError):
    """歌词文件或文件夹有误，或缓存写不了；消息写明文件与位置。"""


class RawSong(NamedTuple):
    name: Any
    singer: Any
    lyric: Any
    where: str


class Song(NamedTuple):
    name: str
    singer: str
    text: str  # 行之间是一个换行


# ---------------------------------------------------------------------------
# 1. 读取
# ---------------------------------------------------------------------------


def find_files(folder: Path) -> list[Path]:
    """文件夹（含子文件夹）里的歌词文件，按路径排序；有别的文件时不用自带样例。

    Raises:
        CorpusError: 文件夹不存在，或里面没有歌词文件。
    """
    folder = Path(folder)
    with _file_errors("读不了", folder):
        if not folder.is_dir():
            raise CorpusError(f"歌词文件夹不存在：{_shown(folder)}")
        files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        raise CorpusError(f"歌词文件夹是空的：{_shown(folder)}（需要 *.json、*.jsonl、*.txt 或 *.lrc）")
    own = [path for path in files if path.name != SAMPLE_FILE]
    return own or files


def fingerprint_files(folder: Path, files: Sequence[Path]) -> str:
    """全部文件名与内容的 SHA-256。"""
    digest = hashlib.sha256()
    for path in files:
        content = _read_bytes(path)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode("utf-8", "surrogatepass"))
        digest.update(content)
    return digest.hexdigest()


def _read_bytes(path: Path) -> bytes:
    with _file_errors("读不了", path):
        return path.read_bytes()


@contextlib.contextmanager
def _file_errors(what: str, path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CorpusError(f"{what} {_shown(path)}：{error.strerror or error}") from None


def _shown(path: Path | str) -> str:
    """能放进一行消息的路径：文件名里可以有换行、控制字符和不成字的字节。"""
    return _INVISIBLE.sub("?", str(path).replace("\n", "?"))


def corpus_fingerprint(folder: Path, val_fraction: float) -> str:
    """语料内容、清洗规则与划分比例的指纹；同样的指纹就是同样的训练集与验证集。

    Raises:
        CorpusError: 同 `find_files`。
    """
    return _combined(fingerprint_files(folder, find_files(folder)), CLEANING_VERSION, val_fraction)


def decode_bytes(content: bytes, path: Path) -> str:
    """UTF-8（可带 BOM）或 GB18030 的字节 → 文字。

    Raises:
        CorpusError: 两种编码都不是，或是损坏的 UTF-8。
    """
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        position = error.start + 3 * content.startswith(codecs.BOM_UTF8)
    tolerant = content.decode("utf-8", errors="replace")
    broken = tolerant.count("\ufffd")
    proper = sum(character > "\u07ff" for character in tolerant) - broken
    if proper <= 10 * broken:  # 正常的三字节字不多，就不是坏了几个字节的 UTF-8
        try:
            decoded = content.decode("gb18030")
        except UnicodeDecodeError as error:
            position = error.start
        else:
            private = re.search("[\ue000-\uf8ff]", decoded)  # 其他编码误读成 GB18030 时的典型结果
            if private is None and not _is_shift_jis(content):
                return decoded
            position = len(decoded[: private.start()].encode("gb18030")) if private else position
    raise CorpusError(f"{_shown(path)}：第 {position} 字节处既不是 UTF-8 也不是 GB18030，请先转换成 UTF-8")


def _is_shift_jis(content: bytes) -> bool:
    """按 Shift-JIS 读出大量全角假名的，就是 Shift-JIS。"""
    try:
        text = content.decode("shift_jis")
    except UnicodeDecodeError:
        return False
    return 5 * len(re.findall("[\u3041-\u30f6]", text)) > len(text)


def read_file(path: Path) -> Iterator[RawSong]:
    """一个文件里的歌，未清洗。

    Raises:
        CorpusError: 编码或 JSON 有误（写明行与列），或最外层不是数组。
    """
    text = decode_bytes(_read_bytes(path), path)
    suffix, where = path.suffix.lower(), _shown(path)
    if suffix == ".txt":
        yield RawSong(path.stem, "", text, where)
    elif suffix == ".lrc":
        yield _read_lrc(text, path)
    elif suffix == ".jsonl":
        for number, line in enumerate(text.split("\n"), 1):
            if line.strip():
                yield _raw_song(_parse_json(line, path, number), f"{where} 第 {number} 行")
    else:
        songs = _parse_json(text, path)
        if not isinstance(songs, list):
            raise CorpusError(f'{where}：最外层应为数组 [{{"name": …, "singer": …, "lyric": […]}}, …]')
        for number, song in enumerate(songs, 1):
            yield _raw_song(song, f"{where} 第 {number} 首")


def _parse_json(text: str, path: Path, line: int | None = None) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise CorpusError(
            f"{_shown(path)}：第 {line or error.lineno} 行第 {error.colno} 列不是合法的 JSON（{error.msg}）"
        ) from None
    except (RecursionError, ValueError):
        raise CorpusError(f"{_shown(path)}{f'：第 {line} 行' if line else ''}：JSON 嵌套过深或数字过长") from None


def _raw_song(song: Any, where: str) -> RawSong:
    if not isinstance(song, dict):
        return RawSong("", "", 0, where)  # 由清洗一步归入「格式不对」
    return RawSong(song.get("name", ""), song.get("singer", ""), song.get("lyric"), where)


_STAMP = re.compile(r"\[(\d{1,3}):(\d{1,2}(?:[.:]\d{1,3})?)\]")


def _read_lrc(text: str, path: Path) -> RawSong:
    """LRC：`[ti:]`、`[ar:]` 是歌名与歌手；一行可有多个时间，按时间排开。"""
    tags = {key.lower(): value.strip() for key, value in re.findall(r"^\[(ti|ar):(.*?)\]", text, re.M | re.I)}
    timed = []
    for line in text.splitlines():
        words = _STAMP.sub("", line)
        stamps = _STAMP.findall(line)[:MOST_REPEATS]  # 否则几万个时间加一句长话就能占满内存
        times = [int(minutes) * 60 + float(seconds.replace(":", ".")) for minutes, seconds in stamps]
        timed += [(time, words) for time in times or [timed[-1][0] if timed else 0.0]]
    timed.sort(key=lambda entry: entry[0])
    return RawSong(tags.get("ti") or path.stem, tags.get("ar", ""), [words for _, words in timed], _shown(path))


# ---------------------------------------------------------------------------
# 2. 清洗
# ---------------------------------------------------------------------------

# 行可能有几兆字长：这里每个式子的用时都与字数成正比（相邻的两个 * 不能认得同样的字，开头的 * 不跨行）。
_ABSURD_REFERENCE = re.compile(r"&#[0-9]{8,};?")  # 码位至多七位；几千位的数 int() 不收
_HTML_BREAK = re.compile(r"<\s*(?:br|/p|/div|/li)\s*(?:/\s*)?>", re.I)
_HTML_TAG = re.compile(r"</?(?:p|div|span|b|i|u|em|strong|font|a|li|ul|br)\b[^<>\n]{0,200}>", re.I)
_TIME = re.compile(r"[\[<]\d{1,3}:\d{1,2}(?:[.:]\d{1,3})?[\]>]")
_LRC_TAG = re.compile(
    r"^ *\[(?:ti|ar|al|by|offset|re|ve|au|length|la|id|hash|sign|qq|total|language) *:[^\]\n]*\]", re.M | re.I
)
_LINE_BREAK = re.compile(r"\r\n?|[\v\f\x85\u2028\u2029]")
_SPACE = re.compile(r"[ \t\u00a0\u1680\u2000-\u200a\u202f\u205f\u3000]+")
# 控制、零宽、方向、变体、代理、非字符、私用区
_INVISIBLE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufe00-\ufe0f\ufeff"
    r"\ufdd0-\ufdef\ufff0-\uffff\U0001fffe\U0001ffff\U0002fffe\U0002ffff\U0003fffe\U0003ffff"
    r"\ud800-\udfff\ue000-\uf8ff\U000e0000-\U0010ffff]"
)

_PART = (
    r"(?:verse|pre-?chorus|chorus|bridge|hook|intro|outro|interlude|refrain|ending|rap|solo|music|repeat|"
    r"主歌|副歌|导歌|前奏|间奏|尾奏|过门|过渡|桥段|独白|念白|说唱|合唱|重复|反复|伴奏|尾声)"
)
_PART_LINE = re.compile(
    rf"^[ \[【（(〔{{<《*#-]*{_PART}"
    r"(?:[ .-]*[0-9A-Za-z一二三四五六]{1,3}|[ ]*[xX×*][ ]*\d+)?[ \]】）)〕}>》*#:：.…-]*$",
    re.M | re.I,
)
_PART_PREFIX = re.compile(
    rf"^ *[\[【（(〔{{] *{_PART} *(?:[0-9A-Za-z一二三四五六]{{1,3}} *)?[\]】）)〕}}] *[:：]?", re.M | re.I
)
_VOICE_PREFIX = re.compile(
    r"^ *(?:[\[【（(] *)?(?:男声?|女声?|合唱?|男女|齐唱?|童声|对唱|rap) *(?:[\]】）)] *)?[:：]", re.M | re.I
)
_TIMES_SUFFIX = re.compile(r"(?:(?<![\d ]) *[xX×*] *\d{1,2}|(?<! ) *[(（\[【] *[xX×*] *\d{1,2} *[)）\]】]) *$", re.M)

_CREDIT_KEY = (
    r"作词|作曲|填词|谱曲|编曲|词曲|原唱|翻唱|演唱|演奏|歌手|歌名|歌曲|专辑|制作|监制|出品|发行|录音|录制|混音|混缩|缩混|母带|"
    r"和声|和音|合声|吉他|木吉他|电吉他|贝斯|贝司|低音|鼓手|架子鼓|打击乐|键盘|钢琴|弦乐|提琴|大提琴|小提琴|中提琴|二胡|古筝|琵琶|"
    r"笛子|竹笛|萨克斯|口琴|手风琴|企划|统筹|宣传|推广|封面|海报|策划|后期|配唱|版权|声明|音乐总监|人声|工作室|经纪|"
    r"op|sp|isrc|produc|lyric|music|compos|arrang|vocal|mix|master|guitar|bass|drum|keyboard|piano|string|record|engineer|"
    r"written|executive|backing|programming|studio|label"
)
_CREDIT = re.compile(
    rf"^[^\w\n]*(?:(?:{_CREDIT_KEY})(?![声会弹响里上着了])[^:：\n我你他她说着]{{0,40}}[:：].*"
    r"|(?:词|曲|编|唱|鼓|文)(?: *[/、&+] *(?:词|曲|编|唱))* *[:：].*"
    r"|(?:作词|作曲|填词|编曲|词曲|制作人|监制)(?: *[/、&] *(?:作曲|编曲))* +\S.*"
    r"|(?:lyrics?|music|words|written|composed|arranged|produced|mixed|mastered) +by\b.*"
    r"|(?:op|sp|op ?/ ?sp) *[:：/].*)$",
    re.M | re.I,
)
_NOTICE = re.compile(
    r"^.*(?:未经.{0,12}(?:许可|授权|同意)|请勿翻唱|纯音乐.{0,4}请.{0,3}欣赏|没有填词的纯音乐|享有.{0,12}翻译作品|"
    r"歌词(?:制作|编辑|贡献|上传)者?|lrc ?(?:by|制作)|https?://|www\.).*$",
    re.M | re.I,
)
_EMPTY_LINE = re.compile(r"^[\W_]*\n", re.M)
_HAN = re.compile(r"[\u3400-\u4dbf\u4e00-\u9fff\U00020000-\U000323af]")


def _unescape(text: str) -> str:
    return html.unescape(_ABSURD_REFERENCE.sub("", text))


def clean_text(text: str) -> str:
    """歌词原文 → 一行一句的干净文字（行间一个换行，无空行，结果是合法的 Unicode）。"""
    if "&" in text:
        text = _unescape(text)
    text = _LINE_BREAK.sub("\n", text)
    if "<" in text:
        text = _HTML_TAG.sub("", _HTML_BREAK.sub("\n", text))
    text = _INVISIBLE.sub("", _SPACE.sub(" ", text))
    if "[" in text or "<" in text:
        text = _LRC_TAG.sub("", _TIME.sub("", text))
    text = _PART_PREFIX.sub("", _PART_LINE.sub("", text))
    text = _NOTICE.sub("", _CREDIT.sub("", text))
    text = _TIMES_SUFFIX.sub("", _VOICE_PREFIX.sub("", text))
    lines = (" ".join(line.split()) for line in _EMPTY_LINE.sub("", text + "\n").split("\n"))
    return "\n".join(line for line in lines if line)


def clean_name(name: Any) -> str:
    """歌名或歌手 → 一行干净文字；不是文字的当作没有。"""
    if not isinstance(name, str):
        return ""
    name = _INVISIBLE.sub("", _SPACE.sub(" ", _LINE_BREAK.sub(" ", _unescape(name).replace("\n", " "))))
    return " ".join(name.split())[:LONGEST_NAME].strip()


def clean_song(raw: RawSong) -> Song | str:
    """清洗一首歌；不能用时返回原因。"""
    lyric = raw.lyric
    if lyric is None:
        return "缺少 lyric"
    if isinstance(lyric, list) and all(isinstance(line, str) for line in lyric):
        lyric = "\n".join(lyric)
    if not isinstance(lyric, str):
        return "格式不对"
    if not lyric.strip():
        return "歌词为空"
    text = clean_text(lyric)
    if not text:
        return "清洗后为空"
    if len(_HAN.findall(text)) < FEWEST_HAN:
        return f"汉字不足 {FEWEST_HAN} 个"
    return Song(clean_name(raw.name), clean_name(raw.singer), text)


def read_songs(files: Sequence[Path], report: dict[str, Any], progress: Say) -> list[Song]:
    """读取并清洗全部文件；report 记下首数与舍弃的原因。"""
    songs: list[Song] = []
    dropped: Counter[str] = Counter()
    examples: dict[str, str] = {}
    read = 0
    for path in files:
        for raw in read_file(path):
            read += 1
            result = clean_song(raw)
            if isinstance(result, Song):
                songs.append(result)
            else:
                dropped[result] += 1
                examples.setdefault(result, raw.where)
            if read % 2000 == 0:
                progress(f"读取并清洗 {read:,} 首 · {_shown(path.name)}")
    report |= {"files": len(files), "songs_read": read, "dropped": dict(dropped), "dropped_examples": examples}
    return songs


# ---------------------------------------------------------------------------
# 3. 去重
# ---------------------------------------------------------------------------

CANDIDATE_SPAN = 8  # 两首歌至少共有两个 8 字片段才作比较
COMPARE_SPAN = 4
NEAR_COPY = 0.5  # 较短一首的 4 字片段有一半以上在另一首里，就算同一首歌
COMMON_SPAN = 100  # 出现在这么多首歌里的片段是套话，不用来找候选


def content_key(text: str) -> str:
    """用于比较的内容：只留文字与数字，忽略大小写、标点、分行和「妳」「你」之别。"""
    return re.sub(r"[\W_]+", "", text).lower().replace("妳", "你")


def near_copies(keys: Sequence[str]) -> dict[int, int]:
    """找出与先前某首相同或大半相同的歌。

    先用共有的 8 字片段（数组排序，近似线性）找候选，再逐对算 4 字片段的包含度
    |A∩B| / min(|A|,|B|)（Broder 1997, On the resemblance and containment of documents）。

    Args:
        keys: 每首歌的 `content_key`，按读取次序。

    Returns:
        {重复的歌的序号: 它重复的、留下的那首的序号}。
    """
    first: dict[str, int] = {}
    copies = {index: kept for index, key in enumerate(keys) if (kept := first.setdefault(key, index)) != index}
    pairs = _candidate_pairs(keys)
    spans = functools.lru_cache(maxsize=4096)(lambda index: _spans(keys[index]))
    for later, earlier in pairs:
        if later in copies or earlier in copies:
            continue
        a, b = spans(earlier), spans(later)
        if len(a & b) >= NEAR_COPY * min(len(a), len(b)):
            copies[later] = earlier
    return copies


def _spans(key: str) -> set[str]:
    return {key[start : start + COMPARE_SPAN] for start in range(max(1, len(key) - COMPARE_SPAN + 1))}


def _candidate_pairs(keys: Sequence[str]) -> list[tuple[int, int]]:
    """共有足够多 8 字片段的 (较后, 较前) 歌曲对，按较后者排序。"""
    lengths = np.array([len(key) for key in keys], dtype=np.int64)
    if lengths.max(initial=0) < CANDIDATE_SPAN:
        return []
    codes = np.frombuffer("".join(keys).encode("utf-32-le"), dtype="<u4").astype(np.uint64)
    positions = len(codes) - CANDIDATE_SPAN + 1
    hashes = np.zeros(positions, dtype=np.uint64)
    for offset in range(CANDIDATE_SPAN):  # 多项式散列，模 2^64
        hashes = hashes * np.uint64(0x9E3779B97F4A7C15) + codes[offset : offset + positions]
    song = np.repeat(np.arange(len(keys), dtype=np.int32), lengths)
    within = song[:positions] == song[CANDIDATE_SPAN - 1 :]
    hashes, song = hashes[within], song[:positions][within]

    order = np.argsort(hashes, kind="stable")
    hashes, song = hashes[order], song[order]
    same = np.append((hashes[1:] == hashes[:-1]) & (song[1:] == song[:-1]), False)  # 歌里自己的重复
    hashes, song = hashes[~same], song[~same]
    distinct = np.bincount(song, minlength=len(keys))  # 每首歌不同片段的个数
    starts = np.flatnonzero(np.append(True, hashes[1:] != hashes[:-1]))
    sizes = np.diff(np.append(starts, len(hashes)))
    song = song.astype(np.int64)
    earliest, common = song[np.repeat(starts, sizes)], np.repeat(sizes > COMMON_SPAN, sizes)
    common &= song != earliest
    found = [song[common] * len(keys) + earliest[common]]  # 很多歌都有的片段：只与最先的一首比
    shared = np.repeat((sizes > 1) & (sizes <= COMMON_SPAN), sizes)
    hashes, song = hashes[shared], song[shared]
    for distance in range(1, COMMON_SPAN):
        match = np.flatnonzero(hashes[distance:] == hashes[:-distance])
        if not len(match):
            break
        found.append(song[match + distance] * len(keys) + song[match])
    pairs, counts = np.unique(np.concatenate(found), return_counts=True)
    later, earlier = pairs // len(keys), pairs % len(keys)
    enough = counts >= np.maximum(2, 0.1 * np.minimum(distinct[later], distinct[earlier]))
    return list(zip(later[enough].tolist(), earlier[enough].tolist(), strict=True))


# ---------------------------------------------------------------------------
# 4. 划分
# ---------------------------------------------------------------------------


def split_songs(keys: Sequence[str], val_fraction: float) -> tuple[list[int], list[int], list[int]]:
    """按内容哈希划分。

    Returns:
        (训练集序号, 验证集序号, 每首歌的 64 位哈希)；两个集合都按哈希排序，好让同一歌手的歌不相邻。
    """
    digests = [int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big") for key in keys]
    order = sorted(range(len(keys)), key=digests.__getitem__)
    threshold = val_fraction * 2**64
    val = [index for index in order if digests[index] < threshold] or order[:1]  # 极小的语料也要有一首验证
    if len(val) == len(order):
        val = order[:1]
    return order[len(val) :], val, digests


def unigram_bits_per_character(train: Sequence[str], val: Sequence[str]) -> float:
    """字一元模型（加一平滑，含歌尾符号）在验证歌曲上的每字比特数：模型起码要低于它。"""
    counts: Counter[str] = Counter()
    for text in train:  # 一首一首地数：整个语料一次数完要几秒，其间不理 Ctrl-C
        counts.update(text)
    counts["</s>"] = len(train)
    total = counts.total() + len(counts) + 1
    held_out = Counter("".join(val))
    held_out["</s>"] = len(val)
    bits = sum(n * -math.log2((counts[symbol] + 1) / total) for symbol, n in held_out.items())
    return bits / sum(map(len, val))


# ---------------------------------------------------------------------------
# 5. 编码与缓存
# ---------------------------------------------------------------------------

_HEADER = struct.Struct("<8sIIQI32s")  # 魔数、版本、词表大小、词元数、CRC-32、指纹
_MAGIC = b"LYRICTOK"
_CACHE_VERSION = 1
_ENCODE_CHUNK = 8192
_TRAINING_LINE = re.compile(".{1,100000}")  # sentencepiece 略过 1 MB 以上的行，切开再给


@dataclass(frozen=True)
class Corpus:
    """准备好的语料。

    Attributes:
        train, val: uint16 词元流（内存映射）。
        fingerprint: 语料内容、清洗规则与划分比例的指纹，存入检查点。
        report: 各步的统计。
    """

    tokenizer: Tokenizer
    train: np.ndarray
    val: np.ndarray
    fingerprint: str
    report: dict[str, Any]


def prepare(
    lyrics_dir: Path,
    cache_dir: Path,
    tokenizer_path: Path,
    vocab_size: int,
    val_fraction: float,
    tokenizer: Tokenizer | None = None,
    say: Say = lambda message: None,
    progress: Say = lambda message: None,
) -> Corpus:
    """歌词文件夹 → 词元缓存与分词器；都没变时直接读缓存。

    Args:
        tokenizer: 检查点的分词器；给出时不训练也不改动 tokenizer_path。
        say, progress: 收一行消息，分别用于新的一行和改写进度行。

    Raises:
        CorpusError: 文件夹、文件或其中的歌有误，或缓存写不了。
        TokenizerError: 词表太小。
    """
    files = find_files(lyrics_dir)
    if [path.name for path in files] == [SAMPLE_FILE]:
        say(f"{lyrics_dir} 里没有别的歌词文件，使用自带样例 {SAMPLE_FILE}")
    fingerprint = corpus_fingerprint(lyrics_dir, val_fraction)
    tokenizer_key = _combined(fingerprint, vocab_size, tokenizer_module.SETTINGS_VERSION)
    known = tokenizer or _load_trained_tokenizer(tokenizer_path, cache_dir, tokenizer_key)
    if known is not None:
        cached = _load_cache(cache_dir, known, fingerprint)
        if cached is not None:
            return cached

    report: dict[str, Any] = {}
    songs, keys = _distinct_songs(lyrics_dir, files, report, say, progress)
    train, val, digests = split_songs(keys, val_fraction)
    if known is None:
        lines = [line for index in train for part in songs[index] for line in _TRAINING_LINE.findall(part)]
        say(f"训练分词器（{len(lines):,} 行；其间 Ctrl-C 稍后才生效）…")
        known = tokenizer_module.train(lines, vocab_size)
        _save_trained_tokenizer(known, tokenizer_path, cache_dir, tokenizer_key)
    say(f"编码 {len(songs):,} 首歌…")
    named = [_with_header(song, digest) for song, digest in zip(songs, digests, strict=True)]
    sides = {"train": [named[index] for index in train], "val": [named[index] for index in val]}
    streams = {name: _encode(side, known, progress) for name, side in sides.items()}
    report |= _statistics(songs, sides, streams, known)
    _save_cache(cache_dir, streams, known, fingerprint, report)
    # 刚写的缓存也可能读不回来（例如别的训练正用同一个文件夹）：手里的词元是一样的
    made = Corpus(known, streams["train"], streams["val"], fingerprint, report)
    return _load_cache(cache_dir, known, fingerprint) or made


def _distinct_songs(
    folder: Path, files: Sequence[Path], report: dict[str, Any], say: Say, progress: Say
) -> tuple[list[Song], list[str]]:
    """清洗、去重之后的歌和它们的 `content_key`；report 记下各步的数目。"""
    with _file_errors("读不了", folder):
        size = sum(path.stat().st_size for path in files) / 1e6
    say(f"读取并清洗 {len(files)} 个文件（{size:.1f} MB）…")
    songs = read_songs(files, report, progress)
    if not songs:
        reasons = "、".join(f"{reason} {count} 首" for reason, count in report["dropped"].items()) or "文件里没有歌"
        raise CorpusError(f"{_shown(folder)} 清洗后没有剩下一首歌：{reasons}")
    say(f"在 {len(songs):,} 首里找重复…")
    keys = [content_key(song.text) for song in songs]
    copies = near_copies(keys)
    identical = sum(keys[later] == keys[earlier] for later, earlier in copies.items())
    report |= {"identical": identical, "near_copies": len(copies) - identical}
    songs = [song for index, song in enumerate(songs) if index not in copies]
    keys = [key for index, key in enumerate(keys) if index not in copies]
    if len(songs) < 2:
        raise CorpusError(f"{_shown(folder)} 清洗去重后只剩 1 首歌，训练与验证至少各要一首")
    return songs, keys


def _statistics(
    songs: Sequence[Song], sides: dict[str, list[Song]], streams: dict[str, np.ndarray], tokenizer: Tokenizer
) -> dict[str, Any]:
    """划分与编码之后的数目，和字一元模型的每字比特数。"""
    characters = sum(len(song.text) for song in songs)
    tokens = sum(len(stream) for stream in streams.values())
    texts = {name: [song.name + song.singer + song.text for song in side] for name, side in sides.items()}
    return {
        "songs": len(songs),
        "characters": characters,
        "tokens": tokens,
        "tokens_per_character": tokens / characters,
        "vocab_size": tokenizer.vocab_size,
        "train_songs": len(sides["train"]),
        "val_songs": len(sides["val"]),
        "train_tokens": len(streams["train"]),
        "val_tokens": len(streams["val"]),
        "unigram_bpc": unigram_bits_per_character(texts["train"], texts["val"]),
    }


def _with_header(song: Song, digest: int) -> Song:
    """固定的一半歌（由哈希决定）不带歌名与歌手，好让模型也会从光秃的歌词写起。"""
    return song if digest & 1 else song._replace(name="", singer="")


def _encode(songs: Sequence[Song], tokenizer: Tokenizer, progress: Say) -> np.ndarray:
    parts = []
    for start in range(0, len(songs), _ENCODE_CHUNK):
        progress(f"编码 {start:,} / {len(songs):,} 首")
        chunk = songs[start : start + _ENCODE_CHUNK]
        bodies = tokenizer.encode_batch([song.text for song in chunk], threads=os.cpu_count() or 1)
        ids: list[int] = []
        for song, body in zip(chunk, bodies, strict=True):
            ids += tokenizer.song("", song.name, song.singer)
            ids += body
            ids.append(tokenizer.eos_id)
        parts.append(np.array(ids, dtype=np.uint16))
    return np.concatenate(parts)


def _combined(*parts: Any) -> str:
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def _write_atomically(path: Path, *chunks: bytes) -> None:
    """先写旁边的临时文件再改名：中途停下不会留下半个文件。"""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with _file_errors("写不了", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                for chunk in chunks:
                    file.write(chunk)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _load_trained_tokenizer(path: Path, cache_dir: Path, key: str) -> Tokenizer | None:
    noted = _read_json(cache_dir / "tokenizer.json")
    if noted.get("key") != key:
        return None
    try:
        content = path.read_bytes()
        return Tokenizer(content) if hashlib.sha256(content).hexdigest() == noted.get("sha256") else None
    except (OSError, TokenizerError):
        return None


def _save_trained_tokenizer(tokenizer: Tokenizer, path: Path, cache_dir: Path, key: str) -> None:
    _write_atomically(path, tokenizer.model_bytes)
    note = {"key": key, "sha256": tokenizer.fingerprint}
    _write_atomically(cache_dir / "tokenizer.json", json.dumps(note).encode())


def _cache_fingerprint(tokenizer: Tokenizer, fingerprint: str) -> str:
    return _combined(fingerprint, tokenizer.fingerprint)


def _save_cache(
    cache_dir: Path, streams: dict[str, np.ndarray], tokenizer: Tokenizer, fingerprint: str, report
) -> None:
    identity = _cache_fingerprint(tokenizer, fingerprint)
    for name, stream in streams.items():
        header = _HEADER.pack(
            _MAGIC, _CACHE_VERSION, tokenizer.vocab_size, len(stream), zlib.crc32(stream), bytes.fromhex(identity)
        )
        _write_atomically(cache_dir / f"{name}.bin", header.ljust(64, b"\0"), stream.tobytes())
    note = {"fingerprint": _combined(identity, json.dumps(report)), "report": report}
    _write_atomically(cache_dir / "report.json", json.dumps(note, indent=1).encode())


def _load_cache(cache_dir: Path, tokenizer: Tokenizer, fingerprint: str) -> Corpus | None:
    """缓存与语料、分词器对得上且完整时读出，否则 None。"""
    identity = _cache_fingerprint(tokenizer, fingerprint)
    noted = _read_json(cache_dir / "report.json")
    if noted.get("fingerprint") != _combined(identity, json.dumps(noted.get("report"))):
        return None
    streams = [read_stream(cache_dir / f"{name}.bin", identity) for name in ("train", "val")]
    if any(stream is None for stream in streams):
        return None
    return Corpus(tokenizer, *streams, fingerprint, noted["report"])


def read_stream(path: Path, identity: str) -> np.ndarray | None:
    """一个缓存文件的词元（只读内存映射）；不存在、指纹不符、被截断或有损坏时 None。"""
    try:
        with open(path, "rb") as file:
            header = file.read(64)
        magic, version, _, count, checksum, found = _HEADER.unpack(header[: _HEADER.size])
        if (magic, version, found.hex()) != (_MAGIC, _CACHE_VERSION, identity):
            return None
        if path.stat().st_size != 64 + 2 * count:
            return None
        stream = np.memmap(path, dtype=np.uint16, mode="r", offset=64, shape=(count,))
    except (OSError, struct.error, ValueError):
        return None
    return stream if zlib.crc32(stream) == checksum else None


# ---------------------------------------------------------------------------
# 6. 批次
# ---------------------------------------------------------------------------


class Batches:
    """训练批次：`at(step)` 只由 (seed, step) 决定。

    词元流首尾相接成环，每轮从随机的位置起切成不重叠的窗口，各取一次，次序由种子决定；
    批次可以跨轮，所以语料比一批还小也行。

    Args:
        tokens: 词元流。
        seq_len: 窗口长度 T（词元）。
        batch_size: 每步的窗口数 B。
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, batch_size: int, seed: int) -> None:
        self.tokens, self.seq_len, self.batch_size, self.seed = tokens, seq_len, batch_size, seed
        self.windows_per_epoch = max(1, len(tokens) // seq_len)
        self._epoch_starts = functools.lru_cache(maxsize=2)(self._draw_epoch)

    def _draw_epoch(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self.seed, epoch])
        offset = generator.integers(self.seq_len)
        return offset + generator.permutation(self.windows_per_epoch) * self.seq_len

    def at(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """第 step 步（从 0 起）的输入与目标，各 (B, T) int64；目标是输入右移一位。"""
        numbers = np.arange(step * self.batch_size, (step + 1) * self.batch_size)
        epochs, places = np.divmod(numbers, self.windows_per_epoch)
        starts = np.array([self._epoch_starts(int(e))[p] for e, p in zip(epochs, places, strict=True)])
        positions = starts[:, None] + np.arange(self.seq_len + 1)
        window = self.tokens[positions % len(self.tokens)].astype(np.int64)  # (B, T+1)
        return window[:, :-1], window[:, 1:]


class Ahead:
    """在另一个线程里先备好下一步的批次，取的时候多半已经好了。

    Args:
        make: 步数 → 那一步的批次；只在那个线程里调用。
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make, self._worker = make, ThreadPoolExecutor(1)
        self._step, self._batch = -1, None

    def at(self, step: int) -> Any:
        """第 step 步的批次；make 的错误在这里抛出。"""
        batch = self._batch if step == self._step else self._worker.submit(self._make, step)
        self._step, self._batch = step + 1, self._worker.submit(self._make, step + 1)
        return batch.result()


IGNORED = -1  # 补齐位置的目标，不计损失


def validation_batches(
    tokens: np.ndarray, seq_len: int, batch_size: int, most: int, rank: int = 0, processes: int = 1
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """验证批次：依次的不重叠窗口，每个词元恰好预测一次；最后一窗用 IGNORED 补齐。

    Args:
        most: 最多多少个窗口；超过时取均匀分布、每次相同的一部分，与 batch_size 无关。
        rank, processes: 取 processes 份里的第 rank 份；各份的批数相同，最后一批可能是空的。
    """
    starts = np.arange(0, len(tokens) - 1, seq_len)
    if len(starts) > most:
        starts = starts[np.linspace(0, len(starts) - 1, most).astype(np.int64)]
    longest = -(-len(starts) // processes)
    starts = starts[rank::processes]
    for first in range(0, longest, batch_size):
        positions = starts[first : first + batch_size, None] + np.arange(seq_len + 1)
        window = tokens[np.minimum(positions, len(tokens) - 1)].astype(np.int64)
        x, y = window[:, :-1].copy(), window[:, 1:].copy()
        y[positions[:, 1:] >= len(tokens)] = IGNORED
        yield x, y
