"""歌 → 词元缓存。

一首歌编码成 `<s> [<title> 歌名] [<singer> 歌手] <lyric> 行\\n行… </s>`，写成 uint16 缓存。
"""

import hashlib
import json
import os
import re
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import tokenizer as tokenizer_module
from corpus.batches import SongStream, weighted
from corpus.cleaning import CLEANING_VERSION, Song
from corpus.files import SAMPLE_FILE, file_errors, find_files, fingerprint_files, is_bundled_sample
from corpus.songs import Say, distinct_songs, split_songs, unigram_bits_per_character
from corpus.weights import numbered, parse_weights, shares, times_of
from tokenizer import Tokenizer, TokenizerError

_HEADER = struct.Struct("<8sIIQI32s")  # 魔数、版本、词表大小、词元数、CRC-32、指纹
_MAGIC = b"LYRICTOK"
_CACHE_VERSION = 1
STREAMS = ("train", "val", "train_folders", "val_folders")
_ENCODE_CHUNK = 8192
_TRAINING_LINE = re.compile(".{1,100000}")  # sentencepiece 略过 1 MB 以上的行，切开再给


@dataclass(frozen=True)
class Corpus:
    """准备好的语料。

    Attributes:
        train, val: uint16 词元流（内存映射），每首歌以 `</s>` 收尾。
        train_folders, val_folders: 每首歌的子文件夹，在 report["folders"] 里的序号。
        fingerprint: 全部歌词文件的指纹；与清洗的版本一起存入检查点。
        report: 各步的统计。
    """

    tokenizer: Tokenizer
    fingerprint: str
    report: dict[str, Any]
    train: np.ndarray
    val: np.ndarray
    train_folders: np.ndarray
    val_folders: np.ndarray

    def training_stream(self) -> SongStream:
        return SongStream(self.train, self.tokenizer.eos_id)

    def windows(self, seq_len: int, weights: Mapping[str, float]) -> int:
        """一轮有几个长 seq_len 的窗口。"""
        return max(1, int(self.training_stream().lengths @ self.times(weights)) // seq_len)

    def shares(self, weights: str) -> dict[str, float]:
        """各个子文件夹占每轮词元的几成。"""
        lengths, folders = self.training_stream().lengths, self.train_folders
        return shares(lengths, self.times(parse_weights(weights)), folders, self.report["folders"])

    def times(self, weights: Mapping[str, float]) -> np.ndarray:
        """(训练的歌数,)，每轮里每首歌几遍。"""
        return times_of(self.train_folders, self.report["folders"], weights)

    def validation_tokens(self, weights: Mapping[str, float]) -> np.ndarray:
        """留出的歌的词元流，各个子文件夹所占的比重与训练时相同。"""
        if not weights:
            return self.val
        stream = SongStream(self.val, self.tokenizer.eos_id)
        times = times_of(self.val_folders, self.report["folders"], weights)
        songs = weighted(times, np.random.default_rng(0))
        if not len(songs):
            return self.val
        return stream.ordered(songs)(np.arange(stream.lengths[songs].sum()))


def corpus_identity(fingerprint: str, val_fraction: float) -> str:
    """文件、清洗规则与划分比例合起来的指纹；同样的指纹就是同样的训练集与验证集。"""
    return _combined(fingerprint, CLEANING_VERSION, val_fraction)


def prepare(
    lyrics_dir: Path,
    cache_dir: Path,
    tokenizer_path: Path,
    vocab_size: int,
    val_fraction: float,
    tokenizer: Tokenizer | None = None,
    say: Say = lambda message: None,
    progress: Say = lambda message: None,
    outputs: Sequence[Path] = (),
    weights: Mapping[str, float] | None = None,
) -> Corpus:
    """歌词文件夹 → 词元缓存与分词器；都没变时直接读缓存。

    Args:
        tokenizer: 检查点的分词器；给出时不训练也不改动 tokenizer_path。
        say, progress: 收一行消息，分别用于新的一行和改写进度行。
        outputs: 训练自己写的文件夹，不当作歌词读。
        weights: {子文件夹: 遍数}，训练分词器时也照此数。

    Raises:
        CorpusError: 文件夹、文件或其中的歌有误，或缓存写不了。
        TokenizerError: 词表太小。
    """
    found = find_files(lyrics_dir, outputs)
    files = found.files
    if len(files) == 1 and is_bundled_sample(files[0]):
        say(f"{lyrics_dir} 里没有别的歌词文件，使用自带样例 {SAMPLE_FILE}")
    fingerprint = fingerprint_files(lyrics_dir, files)
    identity = corpus_identity(fingerprint, val_fraction)
    ignored = {"ignored": found.ignored, "ignored_examples": found.examples}
    weights = weights or {}
    weighing = [sorted(weights.items())] if weights else []
    tokenizer_key = _combined(identity, vocab_size, tokenizer_module.SETTINGS_VERSION, *weighing)
    known = tokenizer or _load_trained_tokenizer(tokenizer_path, cache_dir, tokenizer_key)
    if known is not None:
        cached = _load_cache(cache_dir, known, identity)
        if cached is not None:
            return Corpus(known, fingerprint, cached[1] | ignored, **cached[0])

    report: dict[str, Any] = {}
    songs, keys, folders = distinct_songs(lyrics_dir, files, report, say, progress)
    train, val, digests = split_songs(keys, val_fraction)
    names, placed = numbered(folders)
    if known is None:
        counted = weighted(times_of(placed[train], names, weights), np.random.default_rng(0))
        known = _train_tokenizer([songs[train[index]] for index in counted], vocab_size, say)
        _save_trained_tokenizer(known, tokenizer_path, cache_dir, tokenizer_key)
    say(f"编码 {len(songs):,} 首歌…")
    named = [_with_header(song, digest) for song, digest in zip(songs, digests, strict=True)]
    sides = {"train": [named[index] for index in train], "val": [named[index] for index in val]}
    streams = {name: _encode(side, known, progress) for name, side in sides.items()}
    report |= _statistics(songs, sides, streams, known) | {"folders": names}
    streams |= {"train_folders": placed[train], "val_folders": placed[val]}
    _save_cache(cache_dir, streams, known, identity, report)
    # 刚写的缓存也可能读不回来（例如别的训练正用同一个文件夹）：手里的词元是一样的
    cached = _load_cache(cache_dir, known, identity) or (streams, report)
    return Corpus(known, fingerprint, cached[1] | ignored, **cached[0])


def _train_tokenizer(songs: Sequence[Song], vocab_size: int, say: Say) -> Tokenizer:
    lines = [line for song in songs for part in song for line in _TRAINING_LINE.findall(part)]
    say(f"训练分词器（{len(lines):,} 行；其间 Ctrl-C 稍后才生效）…")
    return tokenizer_module.train(lines, vocab_size)


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
        "stanza_breaks": sum(song.text.count("\n\n") for song in songs),
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
    with file_errors("写不了", path):
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
            _MAGIC, _CACHE_VERSION, tokenizer.vocab_size, len(stream), zlib.crc32(stream.data), bytes.fromhex(identity)
        )
        _write_atomically(cache_dir / f"{name}.bin", header.ljust(64, b"\0"), stream.tobytes())
    note = {"fingerprint": _combined(identity, json.dumps(report)), "report": report}
    _write_atomically(cache_dir / "report.json", json.dumps(note, indent=1).encode())


def _load_cache(cache_dir: Path, tokenizer: Tokenizer, fingerprint: str) -> tuple[dict[str, np.ndarray], dict] | None:
    """缓存与语料、分词器对得上且完整时，读出 `STREAMS` 各个流和报告；否则 None。"""
    identity = _cache_fingerprint(tokenizer, fingerprint)
    noted = _read_json(cache_dir / "report.json")
    if noted.get("fingerprint") != _combined(identity, json.dumps(noted.get("report"))):
        return None
    streams = {name: read_stream(cache_dir / f"{name}.bin", identity) for name in STREAMS}
    found = {name: stream for name, stream in streams.items() if stream is not None}
    return (found, noted["report"]) if len(found) == len(STREAMS) else None


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
    return stream if zlib.crc32(stream.data) == checksum else None


class Lyric(NamedTuple):
    """语料里的一首：歌名、歌手（没有则空）、正文。"""

    title: str
    singer: str
    text: str


def decode_songs(stream: np.ndarray, tokenizer: Tokenizer) -> Iterator[Lyric]:
    """词元流 → 一首首歌。"""
    start = 0
    for end in np.flatnonzero(stream == tokenizer.eos_id):
        song = stream[start:end].tolist()
        start = int(end) + 1
        body = song.index(tokenizer.lyric_id)
        singer = song.index(tokenizer.singer_id) if tokenizer.singer_id in song[:body] else body
        yield Lyric(tokenizer.decode(song[:singer]), tokenizer.decode(song[singer:body]), tokenizer.decode(song[body:]))
