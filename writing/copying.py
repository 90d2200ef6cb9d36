"""语料的索引：要查照抄而没有，就从检查点的语料建起来。"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flags
from corpus.files import CorpusError, find_files, fingerprint_files
from corpus.tokens import Corpus, Lyric, decode_songs, prepare
from flags import constants
from lyrics.copies import CopyIndex
from lyrics.form import LyricsError
from lyrics.sound import lines_of
from tokenizer import Tokenizer
from training import checkpoint

Say = Callable[[str], None]


def build_index(
    folder: Path, identity: str, train: Sequence[Lyric], held_out: Sequence[Lyric], progress: Say
) -> CopyIndex:
    """建好索引再读出来。

    Raises:
        LyricsError: 写不了，或写好后读不回来。
    """
    songs = [*train, *held_out]
    labels = [f"《{song.title}》{song.singer}" if song.title else f"「{lines_of(song.text)[0]}」" for song in songs]
    try:
        CopyIndex.build([song.text for song in songs], labels, folder, identity, len(train), progress)
    except OSError as error:
        raise LyricsError(f"写不了照抄索引 {folder}：{error.strerror or error}") from None
    found = CopyIndex.load(folder, identity)
    if found is None:
        raise LyricsError(f"照抄索引 {folder} 写好后读不回来：另一个进程也在建？请再运行一次")
    return found


def index_of_checkpoint(path: Path, tokenizer: Tokenizer, folder: Path, say: Say, progress: Say) -> CopyIndex:
    """检查点训练时的语料还在原处：建它的索引。

    Raises:
        LyricsError: 语料不在，或与训练时的不同。
    """
    contents = checkpoint.load(path)
    stored, saved = contents["config"], contents["corpus"]
    lyrics_dir, cache_dir = (_folder(stored, name) for name in ("lyrics_dir", "cache_dir"))
    outputs = (path.parent, cache_dir, flags.REPOSITORY / "swanlog")
    ways = f"请先运行 python evaluate.py --only index --checkpoint {path} --lyrics_dir 语料"
    try:
        fingerprint = fingerprint_files(lyrics_dir, find_files(lyrics_dir, outputs).files)
        if not isinstance(saved, dict) or saved["files"] != fingerprint:
            raise LyricsError(f"没有这个模型的语料索引：{folder}\n{lyrics_dir} 不是它训练时的语料；{ways}")
        say(f"没有语料的索引，现在从 {lyrics_dir} 建")
        corpus: Corpus = prepare(
            lyrics_dir,
            cache_dir,
            flags.REPOSITORY / f"{constants.BPE_MODEL_PREFIX}.model",  # 给了分词器，就不会动它
            int(stored.get("bpe_vocab_size", constants.BPE_VOCAB_SIZE)),
            float(stored.get("val_fraction", constants.VAL_FRACTION)),
            tokenizer=tokenizer,
            say=say,
            progress=progress,
            outputs=outputs,
        )
    except CorpusError as error:
        raise LyricsError(f"没有这个模型的语料索引：{folder}\n{error}；{ways}") from None
    train, held_out = (list(decode_songs(stream, tokenizer)) for stream in (corpus.train, corpus.val))
    found = build_index(folder, f"{tokenizer.fingerprint} {corpus.fingerprint}", train, held_out, progress)
    say(f"已建照抄索引 {folder}：{len(train) + len(held_out):,} 首")
    return found


def _folder(stored: dict[str, Any], name: str) -> Path:
    """检查点里记的文件夹；没有记、已不在的是 config.py 的。"""
    recorded = flags.REPOSITORY / str(stored.get(name, ""))
    default: Path = flags.REPOSITORY / getattr(constants, name.upper())
    return recorded if stored.get(name) and recorded.is_dir() else default
