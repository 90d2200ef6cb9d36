"""接着训练、从头开始、拒绝还是归档。"""

import dataclasses
import os
from typing import Any

import flags
from corpus.cleaning import CLEANING_VERSION
from corpus.files import find_files, fingerprint_before, fingerprint_files
from flags import RunConfig
from model import GPT, ModelConfig
from terminal import Display, UserError
from training import checkpoint
from training.checkpoint import BEST, LATEST, CheckpointError
from training.data import output_folders
from training.processes import Processes
from training.progress import Progress


def find_previous_run(config: RunConfig) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """（可以接着训练的 latest.pt，INIT_FROM 的检查点）：至多有一个，从头训练时都是 None。

    Raises:
        UserError: latest.pt 损坏，或它的架构、分词器、语料与现在的设置不同。
        CheckpointError: INIT_FROM 的检查点不存在或损坏。
    """
    latest = config.checkpoint_dir / LATEST
    if not config.resume or not latest.exists():
        if config.init_from is None:
            return None, None
        if config.init_from.resolve().parent == config.checkpoint_dir.resolve():
            raise UserError(
                f"INIT_FROM 就在 {config.checkpoint_dir} 里，开始训练会把它移走：请另给一个 --checkpoint_dir"
            )
        initial = checkpoint.load(config.init_from)
        checkpoint.restore(initial, config.init_from)  # 不合用的现在就说，不等语料备好
        return None, initial
    try:
        previous = checkpoint.load(latest, for_resume=True)
    except CheckpointError as error:
        raise UserError(f"{error}\n请恢复它的备份；或用 --resume false 把它归档并从头训练") from None
    refuse_if_different(previous, with_architecture_of(previous, config))
    return previous, None


ARCHITECTURE = ("n_layers", "n_heads", "n_embed", "max_seq_len")


def with_architecture_of(contents: dict[str, Any] | None, config: RunConfig) -> RunConfig:
    """微调时架构与词表随检查点，不论现在的设置。"""
    if config.init_from is None or contents is None:
        return config
    found = contents["model_config"]
    return dataclasses.replace(
        config, **{name: found[name] for name in ARCHITECTURE}, bpe_vocab_size=found["vocab_size"]
    )


def archive_earlier_run(config: RunConfig, display: Display) -> None:
    """从头开始之前，把检查点文件夹里别的训练的结果移走。语料备好了才移，写错文件夹名不会动到它们。"""
    try:
        moved = checkpoint.archive(config.checkpoint_dir)
    except OSError as error:
        raise UserError(f"移不动 {config.checkpoint_dir} 里旧的结果：{error.strerror}") from None
    if moved is not None:
        display.line(f"上一次训练的结果已移入 {moved}")


def refuse_idle_processes(config: RunConfig, processes: Processes) -> None:
    if processes.count > config.batch_size:
        raise UserError(f"{processes.count} 个进程分不了每步 {config.batch_size} 个序列：请加大 --batch_size")


def require_writable_folders(config: RunConfig) -> None:
    """训练几小时后才发现写不进去就晚了，所以一开始就查。"""
    for folder in (config.checkpoint_dir, config.cache_dir, config.bpe_model_prefix.parent):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"无法创建文件夹 {folder}：{error.strerror}") from None
        if not os.access(folder, os.W_OK):
            raise UserError(f"文件夹 {folder} 没有写权限")


def origin_of(config: dict[str, Any]) -> str | None:
    """INIT_FROM 相对检查点文件夹的位置：整个文件夹搬走、换一种写法，还是同一个。"""
    if config.get("init_from") is None:
        return None
    return os.path.relpath(os.path.realpath(config["init_from"]), os.path.realpath(config.get("checkpoint_dir", ".")))


def refuse_if_different(previous: dict[str, Any], config: RunConfig) -> None:
    """架构、词表、优化器或语料与检查点不同时拒绝开始，列出差别和出路。"""
    now = flags.as_plain_dict(config)
    differences = [
        f"  {name.upper()}：检查点 {previous['config'].get(name)}，现在 {now[name]}"
        for name in (*ARCHITECTURE, "bpe_vocab_size", "optimizer")
        if previous["config"].get(name) != now[name]
    ]
    ways = ["  改回原来的设置", "  --resume false：旧结果移入 archive-…/，从头训练"]
    if origin_of(previous["config"]) != origin_of(now):  # 别的差别多半由此而来
        differences = [f"  INIT_FROM：检查点 {previous['config'].get('init_from')}，现在 {now['init_from']}"]
        ways.insert(1, "  --checkpoint_dir 换一个文件夹：这次训练另存，旧的不动")
    was = previous["config"].get("val_fraction")
    if was != config.val_fraction:
        differences.append(f"  VAL_FRACTION：检查点 {was}，现在 {config.val_fraction}")
    elif not config.allow_new_corpus:
        changed = corpus_changes(previous["corpus"], config)
        differences += changed
        if changed:
            ways.append("  --allow_new_corpus true：用现在的歌，沿用检查点的分词器继续（不再能逐位重现）")
    if differences:
        raise UserError(
            f"{config.checkpoint_dir / LATEST} 与现在的设置不同，没有开始训练：\n"
            + "\n".join(differences)
            + "\n可以：\n"
            + "\n".join(ways)
        )


def corpus_changes(saved: Any, config: RunConfig) -> list[str]:
    """歌词文件变了，还是只是清洗的规则变了；都没变是空的。"""
    files = find_files(config.lyrics_dir, output_folders(config)).files
    if isinstance(saved, str):  # 清洗版本 1 的检查点：两样合在一个指纹里
        unchanged, cleaning = saved == fingerprint_before(config.lyrics_dir, config.val_fraction), 1
    else:
        unchanged, cleaning = saved["files"] == fingerprint_files(config.lyrics_dir, files), saved["cleaning"]
    if not unchanged:
        return [f"  语料：{config.lyrics_dir} 的内容与检查点训练时不同"]
    if cleaning != CLEANING_VERSION:
        return [f"  清洗：规则的版本，检查点 {cleaning}，现在 {CLEANING_VERSION}（歌词文件没有变）"]
    return []


NOT_COMPARED = {"preset", "resume", "allow_new_corpus", "device", "lyrics_dir", "cache_dir", "checkpoint_dir", "seed"}


def announce_resumed(previous: dict[str, Any], config: RunConfig, display: Display) -> None:
    """从哪一步继续，哪些设置与上次不同。"""
    display.line(f"接着训练：从 {config.checkpoint_dir / LATEST} 的第 {previous['iter']} 步继续")
    now = flags.as_plain_dict(config)
    for name, was in previous["config"].items():
        if name in now and name not in NOT_COMPARED and now[name] != was:
            display.line(f"  与上次不同：{name} {was} → {now[name]}")
    if config.seed != previous["rng"]["seed"]:
        display.line(f"  沿用检查点的种子 {previous['rng']['seed']}（{config.seed} 不起作用）")


def is_finished(previous: dict[str, Any], config: RunConfig) -> bool:
    """走完了，或早就不再变好而停下的。"""
    stale = config.patience is not None and previous.get("stale_evaluations", 0) >= config.patience
    return (stale or previous["iter"] >= config.train_iters) and not previous["evaluation_due"]


def extended_from(previous: dict[str, Any], config: RunConfig, display: Display) -> int:
    """在走完的一次训练上接着训时，从哪一步接起：学习率从那里重新起落；不是这样的为 0，或上一次接着训时的那一步。"""
    if not previous["iter"] >= previous["config"]["train_iters"] < config.train_iters:
        return previous.get("extended_from", 0)
    done, until = previous["iter"], config.train_iters
    display.line(f"  上次走完了 {done} 步：学习率从头预热到最高，再退火到第 {until} 步")
    return previous["iter"]


def start_new_best(progress: Progress, config: RunConfig, processes: Processes, display: Display) -> None:
    """语料变了，验证集也变了：旧的 best.pt 留档，最好成绩重新计。"""
    moved = checkpoint.archive(config.checkpoint_dir, [BEST]) if processes.is_main else None
    progress.best_val_loss = progress.best_val_bpc = None
    display.line("  语料或清洗的规则已变：沿用检查点的分词器，这次训练不再能逐位重现")
    display.line(f"  旧语料上的 best.pt 留在 {moved}" if moved else "  验证集已变，最佳成绩重新计")


def build_model(
    config: RunConfig,
    vocab_size: int,
    previous: dict[str, Any] | None,
    initial: dict[str, Any] | None,
    display: Display,
) -> GPT:
    """接着训练的、微调的，或从头来的模型，在 CPU 上。"""
    if previous is not None:
        model, _ = checkpoint.restore(previous, config.checkpoint_dir / LATEST, config.dropout)
    elif initial is not None and config.init_from is not None:
        model, _ = checkpoint.restore(initial, config.init_from, config.dropout)
        display.line(f"微调：权重、架构与分词器取自 {config.init_from}（第 {initial['iter']} 步）")
    else:
        sizes = config.max_seq_len, config.n_layers, config.n_heads, config.n_embed
        model = GPT(ModelConfig(vocab_size, *sizes, config.dropout))
    model.activation_checkpointing = config.activation_checkpointing
    return model
