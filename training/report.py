"""训练说的话，和训练的速度。"""

import contextlib
import shlex
import shutil
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

import flags
from corpus.tokens import Corpus
from flags import RunConfig, constants
from model import GPT
from terminal import Display, duration
from training.checkpoint import BEST, LATEST
from training.device import Runtime, known_peak, peak_flops
from training.processes import signal_name
from training.progress import Progress


class Speedometer:
    """训练速度：不计评估与保存的时间；第一行日志含编译。

    Args:
        step_tokens: 每步的词元数，含别的进程的。
        total: 一共多少步。
    """

    def __init__(self, device: torch.device, step_tokens: int, total: int) -> None:
        self.device, self.step_tokens, self.total = device, step_tokens, total
        self._seconds_per_step: float | None = None

    def restart(self, iteration: int) -> None:
        self._since, self._since_iteration = time.monotonic(), iteration

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def lap(self, iteration: int) -> float:
        """上次记录以来的词元/秒。"""
        now = time.monotonic()
        self._seconds_per_step = (now - self._since) / max(1, iteration - self._since_iteration)
        self._since, self._since_iteration = now, iteration
        return self.step_tokens / self._seconds_per_step

    def seconds_left(self, iteration: int) -> float:
        return (self.total - iteration) * (self._seconds_per_step or 0.0)

    def progress_line(self, iteration: int) -> str:
        left = f" · 剩余 {duration(self.seconds_left(iteration))}" if self._seconds_per_step else ""
        return f"步 {iteration}/{self.total}（{iteration / self.total:.0%}）{left} · Ctrl-C 保存并停下"


def log_line(event: Mapping[str, Any], total: int, device: torch.device, seconds_left: float) -> str:
    """一条日志记录 → 一行。"""
    memory, mfu = event["peak_memory_gb"], event["mfu"]
    parts = [
        f"步 {event['iter']}/{total}",
        f"损失 {event['train_loss']:.4f}",
        f"学习率 {event['lr']:.2e}",
        f"梯度 {event['grad_norm']:.2f}",
        f"{event['tokens_per_s']:,.0f} 词元/秒",
        f"MFU {mfu:.1%}" if mfu is not None else "",
        f"{'显存' if device.type == 'cuda' else '内存'} {memory:.1f} GB" if memory else "",
        f"剩余 {duration(seconds_left)}",
    ]
    return " | ".join(part for part in parts if part)


def announce_evaluation(progress: Progress, saved: bool, unigram_bpc: float, sample: str, display: Display) -> None:
    say = display.line
    say(f"──── 评估 · 第 {progress.iteration} 步 " + "─" * 30)
    best = f"至今最好 {progress.best_val_loss:.4f}" if progress.best_val_loss is not None else "还没有最好的"
    verdict = f"至今最好，已存 {BEST}" if saved else best
    say(f"验证损失 {progress.val_loss:.4f} · {progress.val_bpc:.3f} 比特/字（字一元模型 {unigram_bpc:.3f}）· {verdict}")
    for line in sample.splitlines():
        say(f"  {line}")
    say("─" * 50)


def announce_model(
    model: GPT, config: RunConfig, iteration: int, epochs: float, warmup: int, compiled: bool, display: Display
) -> None:
    inside, embedding = model.parameter_counts()
    display.line(
        f"模型：{config.n_layers} 层 × {config.n_embed} 维 × {config.n_heads} 头，上下文 {config.max_seq_len}；"
        f"参数 {inside / 1e6:.1f}M + 词嵌入 {embedding / 1e6:.1f}M"
    )
    display.line(
        f"训练：第 {iteration} → {config.train_iters} 步，每步 {config.batch_size} × {config.max_seq_len} 词元，"
        f"全程约 {epochs:.1f} 轮语料"
    )
    if warmup < config.warmup_iters:
        display.line(f"预热 {config.warmup_iters} 步比全程还长，已缩短为 {warmup} 步")
    warn_if_disk_is_small(config.checkpoint_dir, inside + embedding, display)
    device = model.embedding.weight.device
    if device.type == "cuda" and known_peak(device) is None and (peak := peak_flops(device)):
        display.line(f"MFU：这块卡不在表里，按实测的一次矩阵乘 {peak / 1e12:.0f} TFLOP/s 算")
    if compiled:
        display.line("第一步要先编译模型，可能要一两分钟 …")


def announce_memory(micro_batch: int, rows: int, needed: int, free: int, display: Display) -> None:
    whole = "整批一次" if micro_batch >= rows else f"每步分 {-(-rows // micro_batch)} 次累积，数学不变"
    display.line(f"显存：空闲 {free / 2**30:.1f} GB；微批次 {micro_batch}（{whole}），峰值约 {needed / 2**30:.1f} GB")


def warn_if_disk_is_small(directory: Path, parameters: int, display: Display) -> None:
    """best.pt 一份权重，latest.pt 另有优化器的两份；换成新的之前，新旧 latest.pt 同时在磁盘上。"""
    copy = 4 * parameters
    wanted = {BEST: copy, LATEST: 3 * copy}
    needed = 3 * copy + sum(size for name, size in wanted.items() if not (directory / name).exists())
    free = shutil.disk_usage(directory).free
    if free < needed:
        display.line(
            f"注意：{directory} 所在磁盘剩 {free / 1e9:.2f} GB，存检查点约需 {needed / 1e9:.2f} GB，请先腾出空间"
        )


def announce(config: RunConfig, environment: Runtime, display: Display) -> None:
    display.line(f"设备：{environment.describe()} · 预设 {config.preset}")
    replaced = flags.replaced_by_preset(config)
    if replaced:
        listed = "、".join(f"{name}={value}" for name, value in replaced.items())
        display.line(f"预设 {config.preset} 换掉的常量（在 config.py 的 PRESETS 里改）：{listed}")
    changed = flags.changed_from_constants(config)
    if changed:
        display.line("本次改动：" + "、".join(f"{name}={value}" for name, value in changed.items()))


def announce_signal(number: int, display: Display) -> None:
    display.urgent(f"收到 {signal_name(number)}：做完这一步就保存、退出 …（再来一次就立即退出，不保存）")


def announce_corpus(corpus: Corpus, config: RunConfig, display: Display) -> None:
    report, say = corpus.report, display.line
    announce_reading(report, display)
    say(
        f"  {report['characters']:,} 字、{report['songs'] + report['stanza_breaks']:,} 节 → {report['tokens']:,} 词元"
        f"（每字 {report['tokens_per_character']:.3f}），词表 {report['vocab_size']:,}"
    )
    say(
        f"  训练 {report['train_songs']:,} 首 {report['train_tokens']:,} 词元；"
        f"验证 {report['val_songs']:,} 首 {report['val_tokens']:,} 词元；字一元模型 {report['unigram_bpc']:.3f} 比特/字"
    )
    if config.lyrics_weights is not None:
        listed = "、".join(f"{name} {share:.0%}" for name, share in corpus.shares(config.lyrics_weights).items())
        say(f"  每轮训练里各个子文件夹所占的词元：{listed}")
    if report["vocab_size"] < config.bpe_vocab_size:
        say(f"  语料较小，词表由 {config.bpe_vocab_size:,} 减为 {report['vocab_size']:,}")


def announce_reading(report: dict[str, Any], display: Display) -> None:
    """读到几首，略过了哪些文件、舍弃了哪些歌与行，各因何、例如哪个。"""
    say = display.line

    def listed(counts: dict[str, int], examples: dict[str, str], unit: str) -> str:
        return "、".join(f"{reason} {count:,} {unit}（如 {examples[reason]}）" for reason, count in counts.items())

    dropped = listed(report["dropped"], report["dropped_examples"], "首")
    say(f"语料：读到 {report['songs_read']:,} 首" + (f"；舍弃 {dropped}" if dropped else ""))
    files = listed(report["unread"] | report["ignored"], report["unread_examples"] | report["ignored_examples"], "个")
    if files:
        say(f"  没有读的文件：{files}")
    lines = "、".join(f"{reason} {count:,} 行" for reason, count in report["dropped_lines"].items())
    if lines:
        say(f"  歌里去掉：{lines}（看看去掉了什么：--inspect 文件夹）")
    for where in report["many_songs"][:3]:
        say(f"  注意：{where} 很长，像是许多首歌，但看不出从哪里分开，当作一首读；请拆开，或在每首前加一行《歌名》")
    copies = f"内容相同 {report['identical']:,} 首、大半相同 {report['near_copies']:,} 首"
    collections = f"、装着别的歌的合集 {report['collections']:,} 个" if report["collections"] else ""
    say(f"  去重：{copies}{collections}；留下 {report['songs']:,} 首")


def announce_finished(previous: dict[str, Any], config: RunConfig, display: Display) -> None:
    done, early = previous["iter"], previous["iter"] < config.train_iters
    display.line(
        f"这次训练已经完成（{done} / {config.train_iters} 步{'，验证损失不再下降，提前停下' if early else ''}）。"
    )
    display.line(f"  写歌词：{inference_command(config)}")
    display.line(f"  再训练：同一命令加上 {'--patience none' if early else f'--train_iters {done * 2}'}")
    display.line("  从头来：同一命令加上 --resume false（旧结果移入 archive-…/）")


def announce_end(
    progress: Progress, unigram_bpc: float, config: RunConfig, signal_number: int | None, display: Display
) -> int:
    """返回退出码。"""
    say = display.line
    if signal_number is not None:
        latest = config.checkpoint_dir / LATEST
        say(f"收到 {signal_name(signal_number)}：已保存 {latest}（第 {progress.iteration} 步）。")
        say("再次运行同一命令，就从这里接着训练。")
        return 128 + signal_number
    if progress.best_val_loss is None:
        say(f"训练完成：{progress.iteration} 步，但每次评估的损失都不是有限的数，没有 {BEST}。")
        return 0
    if progress.iteration < config.train_iters:
        say(f"连续 {progress.stale_evaluations} 次评估没有更好，再练只是背歌：提前停下（--patience none 不停）。")
    say(
        f"训练完成：{progress.iteration} 步。最好的验证损失 {progress.best_val_loss:.4f}，"
        f"{progress.best_val_bpc:.3f} 比特/字（字一元模型 {unigram_bpc:.3f}）。"
    )
    say(f"最好的检查点：{config.checkpoint_dir / BEST}")
    say(f"写歌词：{inference_command(config)}")
    return 0


def inference_command(config: RunConfig) -> str:
    command = f"python inference.py --prompt {shlex.quote(config.generate_prompt)}"
    if config.checkpoint_dir != flags.REPOSITORY / constants.CHECKPOINT_DIR:
        command += f" --checkpoint {shlex.quote(str(config.checkpoint_dir / BEST))}"
    return command
