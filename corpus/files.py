"""歌词文件夹 → 要读的文件；字节 → 文字。"""

import codecs
import contextlib
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".lrc", ".qrc", ".krc", ".yrc", ".lys", ".ttml")
SAMPLE_FILE = "sample.json"  # 自带样例，没有别的歌词文件时才用
SAMPLE_DIGESTS = (  # 自带样例的内容（换行作 \n）的 SHA-256：改过的、自己的 sample.json 不是自带样例
    "79cd7e0c63aa5dd1cf6e876866c04751f879f94ea1ea7bcbca749d1b0df3757d",  # 从前的 259 首
    "94be9c47c41fe733410b25fb46329b67bbd140a5230dd109fa3d5794fb428ed0",
)
WRITTEN_HERE = ("metrics.jsonl", "report.json", "tokenizer.json")  # 训练写进检查点与缓存文件夹的

HIDDEN, OTHER_FORMAT, BROKEN_LINK, LOCKED = "隐藏的", "别的格式", "断了的链接", "打不开的文件夹"
OUTPUT, SAMPLE = "训练自己写的", "自带样例"


class CorpusError(ValueError):
    """歌词文件或文件夹有误，或缓存写不了；消息写明文件与位置。"""


@dataclass
class Found:
    """文件夹里要读的文件，和没有读的：{原因: 例子}、{原因: 个数}。"""

    files: list[Path] = field(default_factory=list)
    ignored: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def ignore(self, reason: str, path: Path) -> None:
        self.ignored[reason] = self.ignored.get(reason, 0) + 1
        self.examples.setdefault(reason, shown(path))


def find_files(folder: Path, outputs: Sequence[Path] = ()) -> Found:
    """文件夹（含子文件夹，跟随链接）里的歌词文件，按路径排序；有别的歌时不用自带样例。

    Args:
        outputs: 训练自己写的文件夹（检查点、缓存……）；在歌词文件夹里面的不当作歌词。

    Raises:
        CorpusError: 文件夹不存在，或里面没有歌词文件。
    """
    found = Found()
    with file_errors("读不了", folder):
        if not folder.is_dir():
            raise CorpusError(f"歌词文件夹不存在：{shown(folder)}")
        for path in sorted(_walk(folder, outputs, found)):
            if path.suffix.lower() in SUFFIXES:
                found.files.append(path)
            else:
                found.ignore(OTHER_FORMAT, path)
    if not found.files:
        raise CorpusError(f"歌词文件夹是空的：{shown(folder)}（需要 {'、'.join('*' + suffix for suffix in SUFFIXES)}）")
    sample = [path for path in found.files if is_bundled_sample(path)]
    if len(sample) < len(found.files):
        for path in sample:
            found.ignore(SAMPLE, path)
            found.files.remove(path)
    return found


def _walk(folder: Path, outputs: Sequence[Path], found: Found) -> Iterator[Path]:
    """逐个给出普通文件；先走真的文件夹，再走链接，同一个文件夹只走一遍（环也就走不进去）。"""
    inside, written = _outputs_inside(folder, outputs)
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    linked: list[Path] = []
    while waiting or linked:
        directory = waiting.pop(0) if waiting else linked.pop(0)
        status = directory.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        try:
            entries = sorted(directory.iterdir())
        except PermissionError:
            if directory == folder:
                raise
            found.ignore(LOCKED, directory)
            continue
        for path in entries:
            if path.name.startswith(".") or path.name == "__MACOSX":
                found.ignore(HIDDEN, path)
            elif path.is_dir():
                if os.path.realpath(path) in inside or (
                    directory == folder and written and path.name.startswith("archive-")
                ):
                    found.ignore(OUTPUT, path)
                else:
                    (linked if path.is_symlink() else waiting).append(path)
            elif path.is_file():
                if directory == folder and path.name in written:
                    found.ignore(OUTPUT, path)
                else:
                    yield path
            elif path.is_symlink():
                found.ignore(BROKEN_LINK, path)


def _outputs_inside(folder: Path, outputs: Sequence[Path]) -> tuple[set[str], tuple[str, ...]]:
    """（歌词文件夹里面的输出文件夹，直接写在歌词文件夹里的文件名）。"""
    root = os.path.realpath(folder)
    real = {os.path.realpath(path) for path in outputs}
    return {path for path in real if path != root}, WRITTEN_HERE if root in real else ()


def is_bundled_sample(path: Path) -> bool:
    """是不是仓库自带的样例：看名字，也看内容。"""
    if path.name != SAMPLE_FILE:
        return False
    content = read_bytes(path).replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest() in SAMPLE_DIGESTS


def fingerprint_files(folder: Path, files: Sequence[Path]) -> str:
    """全部文件名与内容的 SHA-256。"""
    digest = hashlib.sha256()
    for path in files:
        content = read_bytes(path)
        digest.update(f"{path.relative_to(folder).as_posix()}\0{len(content)}\0".encode("utf-8", "surrogatepass"))
        digest.update(content)
    return digest.hexdigest()


def fingerprint_before(folder: Path, val_fraction: float) -> str:
    """清洗版本 1 的检查点里存的语料指纹：那时只认四种扩展名，文件、清洗与划分的指纹合在一起。"""
    suffixes = (".json", ".jsonl", ".txt", ".lrc")
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in suffixes and path.is_file()]
    files = [path for path in files if path.name != SAMPLE_FILE] or files
    parts = fingerprint_files(folder, files), 1, val_fraction
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def read_bytes(path: Path) -> bytes:
    """
    Raises:
        CorpusError: 读不了。
    """
    with file_errors("读不了", path):
        return path.read_bytes()


@contextlib.contextmanager
def file_errors(what: str, path: Path) -> Iterator[None]:
    """OSError → 写明文件的 CorpusError。"""
    try:
        yield
    except OSError as error:
        raise CorpusError(f"{what} {shown(path)}：{error.strerror or error}") from None


def shown(path: Path | str) -> str:
    """能放进一行消息的路径：文件名里可以有换行、控制字符和不成字的字节。"""
    return "".join(letter if letter.isprintable() or letter == "\u3000" else "?" for letter in str(path))


# ---------------------------------------------------------------------------
# 字节 → 文字
# ---------------------------------------------------------------------------

KRC_HEAD = b"krc1"  # 酷狗
QRC_HEAD = bytes.fromhex("9825b0ace3028368e8fc6c")  # QQ 音乐的本地缓存；解开一层就是下面的
QRC_INNER_HEAD = b"[offset:0]\n"
_HEX_ONLY = re.compile(rb"\s*(?:[0-9A-Fa-f]{2}\s*){64,}\Z")  # QQ 音乐的网络接口给的十六进制
PLAYER_SUFFIXES = (".qrc", ".krc", ".yrc", ".lys")


def is_encrypted(content: bytes, suffix: str) -> bool:
    """播放器加了密的歌词，看开头就知道；不猜编码。"""
    if content.startswith((KRC_HEAD, QRC_HEAD)) or _HEX_ONLY.match(content):
        return True
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        if content.startswith(QRC_INNER_HEAD):
            return True
        return suffix in PLAYER_SUFFIXES and b"[" not in content.replace(b"\r", b"\n").split(b"\n")[0][:4]
    return suffix in PLAYER_SUFFIXES and "\0" in text


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
            if private is None:
                return decoded
            position = len(decoded[: private.start()].encode("gb18030"))
    raise CorpusError(f"{shown(path)}：第 {position} 字节处既不是 UTF-8 也不是 GB18030，请先转换成 UTF-8")
