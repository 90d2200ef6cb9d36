"""训练的语料：在几个进程、几台机器上备好；或只写出来看一看。"""

import time
from pathlib import Path
from typing import Any

from corpus.files import CorpusError
from corpus.inspection import inspect
from corpus.tokens import Corpus, prepare
from corpus.weights import parse_weights
from flags import REPOSITORY, RunConfig
from terminal import Display
from tokenizer import Tokenizer
from training.processes import Processes
from training.report import announce_corpus, announce_reading


def output_folders(config: RunConfig) -> list[Path]:
    """训练自己写的文件夹：在歌词文件夹里面时，不当作歌词读。"""
    written = [config.checkpoint_dir, config.cache_dir, REPOSITORY / "swanlog"]
    return written + ([config.inspect] if config.inspect is not None else [])


def look_at_corpus(config: RunConfig, folder: Path) -> int:
    """`--inspect`：把读到的歌写出来给人看，不训练。"""
    display = Display()
    report = inspect(
        config.lyrics_dir, folder, config.val_fraction, output_folders(config), display.line, display.progress
    )
    announce_reading(report, display)
    display.line(f"写在 {folder}：songs.txt 是要训练的歌，dropped.txt 是没有用的歌，files.txt 是略过的文件")
    return 0


def prepare_corpus(
    config: RunConfig, processes: Processes, previous: dict[str, Any] | None, display: Display
) -> Corpus:
    """主进程先准备；然后别的机器各由一个进程准备（共享文件夹时只是读缓存），其余进程最后读缓存。

    Args:
        previous: 接着训练或微调的检查点：用它的分词器。

    Raises:
        CorpusError: 这台机器上的语料与主进程的不同。
    """
    began = time.monotonic()

    def prepare_here(tokenizer: Tokenizer | None) -> Corpus:
        return prepare(
            config.lyrics_dir,
            config.cache_dir,
            config.bpe_model_prefix.with_name(config.bpe_model_prefix.name + ".model"),
            config.bpe_vocab_size,
            config.val_fraction,
            tokenizer=tokenizer,
            say=display.line,
            progress=display.progress,
            outputs=output_folders(config),
            weights=parse_weights(config.lyrics_weights),
        )

    made: list[Corpus] = []

    def prepare_first() -> tuple[bytes, str]:
        made.append(prepare_here(Tokenizer(previous["tokenizer"]) if previous else None))
        return made[0].tokenizer.model_bytes, made[0].fingerprint

    model_bytes, fingerprint = processes.broadcast_result(prepare_first)
    for everyone in (False, True):
        if not made and (everyone or processes.local_rank == 0):
            made.append(prepare_here(Tokenizer(model_bytes)))
        processes.barrier()
    (corpus,) = made
    if corpus.fingerprint != fingerprint:
        raise CorpusError(f"这台机器上 {config.lyrics_dir} 的内容与主进程的不同")
    announce_corpus(corpus, config, display)
    display.line(f"  语料备好，用时 {time.monotonic() - began:.1f} 秒")
    return corpus
