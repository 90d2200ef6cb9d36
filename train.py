"""训练歌词模型：`python train.py`。

配置在 config.py，也可用同名小写参数覆盖（`python train.py --help`）。
中断后再次运行同一命令，就从 latest.pt 接着训练，结果与不中断时逐位相同。
"""

import contextlib
import math
import os
import secrets
import shlex
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import checkpoint
import config as configuration
import data
import generation
import runtime
from checkpoint import BEST, LATEST, METRICS, CheckpointError
from config import UserError
from model import GPT, ModelConfig
from optimizer import build_adamw, learning_rate_at, set_learning_rate
from runtime import Display, StopSignals, duration
from tokenizer import Tokenizer, TokenizerError
from tracking import MetricsFile, SwanLab, Tracker

DESCRIPTION = "训练中文歌词模型。常量与说明都在 config.py；这里的参数覆盖它们。"


def main(argv: Sequence[str]) -> int:
    """返回退出码：0 完成；128+n 被信号 n 停下，已保存。"""
    config = configuration.resolve(argv, runtime.has_accelerator(), "train.py", DESCRIPTION)
    display = Display()
    stop = StopSignals()
    with stop.installed():
        try:
            return train(config, display, stop)
        except torch.OutOfMemoryError:
            size = max(1, (config.micro_batch_size or config.batch_size) // 2)
            raise UserError(f"显存不足：请加 --micro_batch_size {size}（仍不够再减半）；每步的数学不变") from None
        except KeyboardInterrupt:
            display.line("已中断；上次保存之后的进度没有保存。" if stop.graceful else "已中断；训练还没有开始。")
            return 128 + (stop.received or signal.SIGINT)


def train(config: Any, display: Display, stop: StopSignals) -> int:
    """从头到尾的一次训练。"""
    # 1. 设备、精度、种子
    environment = runtime.setup(config.device, config.use_amp, config.seed)
    announce(config, environment, display)

    # 2. 接着训练，还是从头开始
    previous = find_previous_run(config)
    if previous is not None and previous["iter"] >= config.train_iters:
        announce_finished(previous, config, display)
        return 0

    # 3. 语料：清洗、分词、缓存
    began = time.monotonic()
    corpus = data.prepare(
        config.lyrics_dir,
        config.cache_dir,
        tokenizer_file(config),
        config.bpe_vocab_size,
        config.val_fraction,
        tokenizer=Tokenizer(previous["tokenizer"]) if previous else None,
        say=display.line,
        progress=display.progress,
    )
    announce_corpus(corpus.report, config, display)
    display.line(f"  语料备好，用时 {time.monotonic() - began:.1f} 秒")

    if previous is None:
        archive_earlier_run(config, display)

    # 4. 模型、优化器、记录
    trainer = Trainer(config, environment, corpus, previous, display)

    # 5. 训练循环
    crashed = True
    try:
        trainer.announce()
        signal_number = trainer.run(stop)
        crashed = False
    finally:
        trainer.tracker.finish(crashed)

    # 6. 收尾
    return announce_end(trainer, signal_number)


# ---------------------------------------------------------------------------
# 接着训练，还是从头开始
# ---------------------------------------------------------------------------


def find_previous_run(config: Any) -> dict[str, Any] | None:
    """可以接着训练的 latest.pt；没有，或不想接着训练，则返回 None。

    Raises:
        UserError: latest.pt 损坏，或它的架构、分词器、语料与现在的设置不同。
    """
    directory = config.checkpoint_dir
    for folder in (directory, config.cache_dir, config.bpe_model_prefix.parent):
        require_writable(folder)
    latest = directory / LATEST
    if not config.resume or not latest.exists():
        return None
    try:
        previous = checkpoint.load(latest, for_resume=True)
    except CheckpointError as error:
        raise UserError(f"{error}\n请恢复它的备份；或用 --resume false 把它归档并从头训练") from None
    refuse_if_different(previous, config)
    return previous


def archive_earlier_run(config: Any, display: Display) -> None:
    """从头开始之前，把检查点文件夹里别的训练的结果移走。语料备好了才移，写错文件夹名不会动到它们。"""
    moved = checkpoint.archive(config.checkpoint_dir)
    if moved is not None:
        display.line(f"上一次训练的结果已移入 {moved}")


def require_writable(folder: Path) -> None:
    """训练几小时后才发现写不进去就晚了，所以一开始就查。"""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"无法创建文件夹 {folder}：{error.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise UserError(f"文件夹 {folder} 没有写权限")


def refuse_if_different(previous: dict[str, Any], config: Any) -> None:
    """架构、词表或语料与检查点不同时拒绝开始，列出差别和出路。"""
    settings = ("n_layers", "n_heads", "n_embed", "max_seq_len", "bpe_vocab_size")
    differences = [
        f"  {name.upper()}：检查点 {previous['config'].get(name)}，现在 {getattr(config, name)}"
        for name in settings
        if previous["config"].get(name) != getattr(config, name)
    ]
    ways = ["  改回原来的设置", "  --resume false：旧结果移入 archive-…/，从头训练"]
    if previous["corpus"] != data.corpus_fingerprint(config.lyrics_dir, config.val_fraction):
        if previous["config"].get("val_fraction") != config.val_fraction:
            was = previous["config"].get("val_fraction")
            differences.append(f"  VAL_FRACTION：检查点 {was}，现在 {config.val_fraction}")
        elif not config.allow_new_corpus:
            differences.append(f"  语料：{config.lyrics_dir} 的内容与检查点训练时不同")
            ways.append("  --allow_new_corpus true：语料添了新歌，沿用检查点的分词器继续（不再能逐位重现）")
    if differences:
        raise UserError(
            f"{config.checkpoint_dir / LATEST} 与现在的设置不同，没有开始训练：\n"
            + "\n".join(differences)
            + "\n可以：\n"
            + "\n".join(ways)
        )


# ---------------------------------------------------------------------------
# 训练
# ---------------------------------------------------------------------------


class Trainer:
    """模型、优化器与进度：一次训练中会变的一切都在这里，也都存进 latest.pt。"""

    def __init__(
        self,
        config: Any,
        environment: runtime.Runtime,
        corpus: data.Corpus,
        previous: dict[str, Any] | None,
        display: Display,
    ) -> None:
        self.config, self.environment, self.corpus, self.display = config, environment, corpus, display
        self.tokenizer = corpus.tokenizer
        self.iteration = 0  # 已完成的优化步数
        self.val_loss: float | None = None
        self.val_bpc: float | None = None
        self.best_val_loss: float | None = None
        self.best_val_bpc: float | None = None
        self.seed = config.seed
        self.run_id = secrets.token_hex(8)
        self.model = self._build_model(previous)
        self.optimizer = build_adamw(self.model, config.learning_rate, config.weight_decay)
        self.scaler = torch.amp.GradScaler(environment.device.type, enabled=environment.needs_scaler)
        if previous is not None:
            self._restore(previous)
        self.batches = data.Batches(corpus.train, config.max_seq_len, config.batch_size, self.seed)
        self.loss_function, self.compiled = self._compile()
        self.warmup = min(config.warmup_iters, max(0, config.train_iters - 1))
        self.speed = Speedometer(self)
        self.tracker = self._build_tracker()

    def _build_model(self, previous: dict[str, Any] | None) -> GPT:
        config = self.config
        if previous is not None:
            model, _ = checkpoint.restore(previous, config.checkpoint_dir / LATEST, config.dropout)
        else:
            model = GPT(
                ModelConfig(
                    vocab_size=self.tokenizer.vocab_size,
                    max_seq_len=config.max_seq_len,
                    n_layers=config.n_layers,
                    n_heads=config.n_heads,
                    n_embed=config.n_embed,
                    dropout=config.dropout,
                )
            )
        return model.to(self.environment.device)

    def _restore(self, previous: dict[str, Any]) -> None:
        self.optimizer.load_state_dict(previous["optimizer"]["adamw"])
        for group, decay in zip(self.optimizer.param_groups, (self.config.weight_decay, 0.0), strict=True):
            group["weight_decay"] = decay  # 以现在的设置为准
        if self.scaler.is_enabled() and previous["scaler"]:
            self.scaler.load_state_dict(previous["scaler"])
        self.iteration = previous["iter"]
        self.val_loss, self.val_bpc = previous["val_loss"], previous["val_bpc"]
        self.best_val_loss, self.best_val_bpc = previous["best_val_loss"], previous["best_val_bpc"]
        self.seed, self.run_id = previous["rng"]["seed"], previous["run_id"]
        self._announce_resumed(previous)
        if previous["corpus"] != self.corpus.fingerprint:
            self._start_new_best()

    def _announce_resumed(self, previous: dict[str, Any]) -> None:
        say, config = self.display.line, self.config
        say(f"接着训练：从 {config.checkpoint_dir / LATEST} 的第 {self.iteration} 步继续")
        now = configuration.as_plain_dict(config)
        ignored = {
            "preset",
            "resume",
            "allow_new_corpus",
            "device",
            "lyrics_dir",
            "cache_dir",
            "checkpoint_dir",
            "seed",
        }
        for name, was in previous["config"].items():
            if name in now and name not in ignored and now[name] != was:
                say(f"  与上次不同：{name} {was} → {now[name]}")
        if config.seed != self.seed:
            say(f"  沿用检查点的种子 {self.seed}（{config.seed} 不起作用）")

    def _start_new_best(self) -> None:
        """语料变了，验证集也变了：旧的 best.pt 留档，最好成绩重新计。"""
        moved = checkpoint.archive(self.config.checkpoint_dir, [BEST])
        self.best_val_loss = self.best_val_bpc = None
        self.display.line("  语料已变：沿用检查点的分词器，这次训练不再能逐位重现")
        self.display.line(f"  旧语料上的 best.pt 留在 {moved}" if moved else "  验证集已变，最佳成绩重新计")

    def _build_tracker(self) -> Tracker:
        config = self.config
        metrics = MetricsFile(config.checkpoint_dir / METRICS, self.iteration)
        swanlab = None
        if config.use_swanlab:
            plain = configuration.as_plain_dict(config)
            log_dir = configuration.REPOSITORY / "swanlog"
            swanlab = SwanLab(config.swanlab_project, self.run_id, plain, log_dir, self.display.line)
        return Tracker(metrics, swanlab, self.display.line)

    def _compile(self) -> tuple[Callable[[Tensor, Tensor], Tensor], bool]:
        if not self.config.use_compile:
            return self.model.loss, False
        try:
            return torch.compile(self.model.loss), True
        except RuntimeError as error:  # 这个 Python 或平台不支持
            return self._without_compile(error), False

    def _without_compile(self, error: BaseException) -> Callable[[Tensor, Tensor], Tensor]:
        reason = str(error).strip().splitlines()[0][:120] if str(error).strip() else type(error).__name__
        self.display.line(f"torch.compile 在这里不可用，改为逐步执行（{reason}）")
        return self.model.loss

    def announce(self) -> None:
        inside, embedding = self.model.parameter_counts()
        c = self.config
        self.display.line(
            f"模型：{c.n_layers} 层 × {c.n_embed} 维 × {c.n_heads} 头，上下文 {c.max_seq_len}；"
            f"参数 {inside / 1e6:.1f}M + 词嵌入 {embedding / 1e6:.1f}M"
        )
        epochs = c.train_iters / (self.batches.windows_per_epoch / c.batch_size)
        self.display.line(
            f"训练：第 {self.iteration} → {c.train_iters} 步，每步 {c.batch_size} × {c.max_seq_len} 词元，"
            f"全程约 {epochs:.1f} 轮语料"
        )
        if self.warmup < c.warmup_iters:
            self.display.line(f"预热 {c.warmup_iters} 步比全程还长，已缩短为 {self.warmup} 步")
        if self.compiled:
            self.display.line("第一步要先编译模型，可能要一两分钟 …")

    # ---- 循环 ----

    def run(self, stop: StopSignals) -> int | None:
        """训练到 train_iters；被信号停下时保存并返回信号编号，否则返回 None。"""
        config = self.config
        stop.graceful = True
        self.speed.restart()
        while self.iteration < config.train_iters:
            loss, gradient_norm, learning_rate = self.step()
            last = self.iteration == config.train_iters
            interrupted = stop.received is not None
            if interrupted:
                self.display.line("收到中断，正在保存 …（再按一次立即退出）")
            log_due = self.iteration % config.log_interval == 0 or self.iteration == 1 or last
            evaluation_due = self.iteration % config.eval_interval == 0 or last
            save_due = self.iteration % config.save_interval == 0 or last or interrupted
            if log_due or evaluation_due or save_due:
                self._refuse_not_finite(loss)
            if log_due:
                self.log(loss, gradient_norm, learning_rate)
            if evaluation_due:
                with self.speed.paused():
                    self.evaluate()
            if save_due:
                with self.speed.paused():
                    self.save_latest()
            if interrupted and not last:
                return stop.received
            self.display.progress(self.speed.progress_line())
        return None

    def _refuse_not_finite(self, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise UserError(
                f"第 {self.iteration} 步的损失成了 {loss.item()}，已停下，没有保存这时的权重。\n"
                "请调小 --learning_rate（或保留 --grad_clip），再次运行就从上一次的 latest.pt 接着训练"
            )

    def step(self) -> tuple[Tensor, Tensor, float]:
        """一个优化步。返回 (平均损失 () , 裁剪前的梯度范数 () , 学习率)，前两个还在设备上。"""
        config = self.config
        learning_rate = learning_rate_at(
            self.iteration, config.train_iters, self.warmup, config.learning_rate, config.min_lr
        )
        set_learning_rate(self.optimizer, learning_rate)
        x, y = (torch.from_numpy(array).to(self.environment.device) for array in self.batches.at(self.iteration))
        loss = self._forward_backward(x, y)
        self.scaler.unscale_(self.optimizer)
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        self.iteration += 1
        return loss, gradient_norm, learning_rate

    def _forward_backward(self, x: Tensor, y: Tensor) -> Tensor:
        """整批的平均损失与梯度；按 MICRO_BATCH_SIZE 分几次做。"""
        try:
            return self._accumulate(x, y)
        except Exception as error:
            if not self.compiled or self.speed.steps or not _from_compiler(error):
                raise
            self.loss_function, self.compiled = self._without_compile(error), False
            self.optimizer.zero_grad(set_to_none=True)
            return self._accumulate(x, y)

    def _accumulate(self, x: Tensor, y: Tensor) -> Tensor:
        runtime.seed_step(self.seed, self.iteration)
        self.model.train()
        size = self.config.micro_batch_size or len(x)
        total = torch.zeros((), device=x.device)
        for start in range(0, len(x), size):
            with self.environment.autocast():
                loss = self.loss_function(x[start : start + size], y[start : start + size]) / y.numel()
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    # ---- 评估、记录、保存 ----

    def evaluate(self) -> None:
        """在留出的歌上算损失与每字比特数，更好就存 best.pt，再试写一段。"""
        self.val_loss, self.val_bpc = self.validation_loss()
        better = math.isfinite(self.val_loss) and (self.best_val_loss is None or self.val_loss < self.best_val_loss)
        if better:
            self.best_val_loss, self.best_val_bpc = self.val_loss, self.val_bpc
            checkpoint.save(self.config.checkpoint_dir / BEST, self._model_contents())
        event = {"iter": self.iteration, "val_loss": self.val_loss, "val_bpc": self.val_bpc, "time": time.time()}
        self.tracker.log(event)

        say = self.display.line
        say(f"──── 评估 · 第 {self.iteration} 步 " + "─" * 30)
        unigram = self.corpus.report["unigram_bpc"]
        verdict = f"至今最好，已存 {BEST}" if better else f"至今最好 {self.best_val_loss:.4f}"
        say(f"验证损失 {self.val_loss:.4f} · {self.val_bpc:.3f} 比特/字（字一元模型 {unigram:.3f}）· {verdict}")
        sample = self.write_sample()
        for line in sample.splitlines():
            say(f"  {line}")
        say("─" * 50)
        self.tracker.log_sample(self.config.generate_prompt, sample, self.iteration)

    def validation_loss(self) -> tuple[float, float]:
        """(每词元损失 nat, 每字比特数)。比特数以验证歌曲的字数（含换行、歌名、歌手）为分母，各种词表可比。"""
        config = self.config
        size = config.micro_batch_size or config.batch_size
        windows = config.eval_iters * config.batch_size  # 与微批次的大小无关
        characters = torch.from_numpy(self.tokenizer.token_characters)
        self.model.eval()
        nats = torch.zeros((), dtype=torch.float64)
        tokens = written = 0
        with torch.no_grad(), self.environment.autocast():
            for x, y in data.validation_batches(self.corpus.val, config.max_seq_len, size, windows):
                targets = torch.from_numpy(y)
                nats += self.model.loss(
                    torch.from_numpy(x).to(self.environment.device), targets.to(self.environment.device)
                ).item()
                real = targets[targets != data.IGNORED]
                tokens += real.numel()
                written += int(characters[real].sum())
        return float(nats) / tokens, float(nats) / math.log(2) / max(1, written)

    def write_sample(self) -> str:
        """用固定的种子从 GENERATE_PROMPT 试写一段。"""
        config = self.config
        self.model.eval()
        prompt = self.tokenizer.song(config.generate_prompt)
        sampling = generation.Sampling(max_tokens=config.generate_tokens, seed=config.seed)
        written = generation.generate(self.model, prompt, sampling, self.tokenizer.eos_id, self.tokenizer.never_written)
        return config.generate_prompt + self.tokenizer.decode(token for step in written for _, token in step)

    def log(self, loss: Tensor, gradient_norm: Tensor, learning_rate: float) -> None:
        """一行日志和一条记录；只有这时才与设备同步。"""
        train_loss, norm = loss.item(), gradient_norm.item()
        speed = self.speed.lap()
        peak = runtime.peak_flops(self.environment.device)
        mfu = speed * self.model.flops_per_token() / peak if peak and self.environment.amp_dtype else None
        memory = runtime.peak_memory_gb(self.environment.device)
        self.tracker.log(
            {
                "iter": self.iteration,
                "train_loss": train_loss,
                "grad_norm": norm,
                "lr": learning_rate,
                "tokens_per_s": speed,
                "mfu": mfu,
                "peak_memory_gb": memory,
                "time": time.time(),
            }
        )
        parts = [
            f"步 {self.iteration}/{self.config.train_iters}",
            f"损失 {train_loss:.4f}",
            f"学习率 {learning_rate:.2e}",
            f"梯度 {norm:.2f}",
            f"{speed:,.0f} 词元/秒",
            f"MFU {mfu:.1%}" if mfu is not None else "",
            f"{'显存' if self.environment.device.type == 'cuda' else '内存'} {memory:.1f} GB" if memory else "",
            f"剩余 {duration(self.speed.seconds_left())}",
        ]
        self.display.line(" | ".join(part for part in parts if part))

    def _model_contents(self) -> dict[str, Any]:
        plain = configuration.as_plain_dict(self.config)
        return checkpoint.model_contents(self.model, self.tokenizer, plain, self.iteration, self.val_loss, self.val_bpc)

    def save_latest(self) -> None:
        contents = self._model_contents() | {
            "optimizer": {"adamw": self.optimizer.state_dict()},
            "scaler": self.scaler.state_dict(),
            "rng": {"seed": self.seed},  # 每步的随机性由 (种子, 步数) 决定
            "best_val_loss": self.best_val_loss,
            "best_val_bpc": self.best_val_bpc,
            "corpus": self.corpus.fingerprint,
            "run_id": self.run_id,
        }
        checkpoint.save(self.config.checkpoint_dir / LATEST, contents)


class Speedometer:
    """训练速度：不计评估与保存的时间；第一行日志含编译。"""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.steps = 0  # 本次启动以来记录过的步数
        self._seconds_per_step: float | None = None

    def restart(self) -> None:
        self._since, self._since_iteration = time.monotonic(), self.trainer.iteration

    @contextlib.contextmanager
    def paused(self):
        if self.trainer.environment.device.type == "cuda":
            torch.cuda.synchronize()
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def lap(self) -> float:
        """上次记录以来的词元/秒。"""
        now = time.monotonic()
        steps = self.trainer.iteration - self._since_iteration
        self._seconds_per_step = (now - self._since) / max(1, steps)
        self.steps += steps
        self._since, self._since_iteration = now, self.trainer.iteration
        config = self.trainer.config
        return config.batch_size * config.max_seq_len / self._seconds_per_step

    def seconds_left(self) -> float:
        return (self.trainer.config.train_iters - self.trainer.iteration) * (self._seconds_per_step or 0.0)

    def progress_line(self) -> str:
        done, total = self.trainer.iteration, self.trainer.config.train_iters
        left = f" · 剩余 {duration(self.seconds_left())}" if self._seconds_per_step else ""
        return f"步 {done}/{total}（{done / total:.0%}）{left} · Ctrl-C 保存并停下"


def _from_compiler(error: BaseException) -> bool:
    """错误是否来自 torch.compile（没有 C++ 编译器、没有 Triton …），而不是我们的代码。"""
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor", "torch._functorch"))


# ---------------------------------------------------------------------------
# 显示
# ---------------------------------------------------------------------------


def announce(config: Any, environment: runtime.Runtime, display: Display) -> None:
    display.line(f"设备：{environment.describe()} · 预设 {config.preset}")
    replaced = configuration.replaced_by_preset(config)
    if replaced:
        listed = "、".join(f"{name}={value}" for name, value in replaced.items())
        display.line(f"预设 {config.preset} 换掉的常量（在 config.py 的 PRESETS 里改）：{listed}")
    changed = configuration.changed_from_constants(config)
    if changed:
        display.line("本次改动：" + "、".join(f"{name}={value}" for name, value in changed.items()))


def announce_corpus(report: dict[str, Any], config: Any, display: Display) -> None:
    say = display.line
    dropped = "、".join(
        f"{reason} {count:,}（如 {report['dropped_examples'][reason]}）" for reason, count in report["dropped"].items()
    )
    say(f"语料：读到 {report['songs_read']:,} 首" + (f"；舍弃 {dropped}" if dropped else ""))
    copies = f"内容相同 {report['identical']:,} 首、大半相同 {report['near_copies']:,} 首"
    say(f"  去重：{copies}；留下 {report['songs']:,} 首")
    say(
        f"  {report['characters']:,} 字 → {report['tokens']:,} 词元（每字 {report['tokens_per_character']:.3f}），"
        f"词表 {report['vocab_size']:,}"
    )
    say(
        f"  训练 {report['train_songs']:,} 首 {report['train_tokens']:,} 词元；"
        f"验证 {report['val_songs']:,} 首 {report['val_tokens']:,} 词元；字一元模型 {report['unigram_bpc']:.3f} 比特/字"
    )
    if report["vocab_size"] < config.bpe_vocab_size:
        say(f"  语料较小，词表由 {config.bpe_vocab_size:,} 减为 {report['vocab_size']:,}")


def announce_finished(previous: dict[str, Any], config: Any, display: Display) -> None:
    display.line(f"这次训练已经完成（{previous['iter']} / {config.train_iters} 步）。")
    display.line(f"  写歌词：{inference_command(config)}")
    display.line(f"  再训练：同一命令加上 --train_iters {previous['iter'] * 2}")
    display.line("  从头来：同一命令加上 --resume false（旧结果移入 archive-…/）")


def announce_end(trainer: Trainer, signal_number: int | None) -> int:
    config, say = trainer.config, trainer.display.line
    if signal_number is not None:
        name = "Ctrl-C" if signal_number == signal.SIGINT else signal.Signals(signal_number).name
        say(f"收到 {name}：已保存 {config.checkpoint_dir / LATEST}（第 {trainer.iteration} 步）。")
        say("再次运行同一命令，就从这里接着训练。")
        return 128 + signal_number
    say(
        f"训练完成：{trainer.iteration} 步。最好的验证损失 {trainer.best_val_loss:.4f}，"
        f"{trainer.best_val_bpc:.3f} 比特/字（字一元模型 {trainer.corpus.report['unigram_bpc']:.3f}）。"
    )
    say(f"最好的检查点：{config.checkpoint_dir / BEST}")
    say(f"写歌词：{inference_command(config)}")
    return 0


def inference_command(config: Any) -> str:
    command = f"python inference.py --prompt {shlex.quote(config.generate_prompt)}"
    if config.checkpoint_dir != configuration.REPOSITORY / configuration.CHECKPOINT_DIR:
        command += f" --checkpoint {shlex.quote(str(config.checkpoint_dir / BEST))}"
    return command


def tokenizer_file(config: Any) -> Path:
    return config.bpe_model_prefix.with_name(config.bpe_model_prefix.name + ".model")


if __name__ == "__main__":
    configuration.run_script(main, UserError, data.CorpusError, CheckpointError, TokenizerError, runtime.DeviceError)
