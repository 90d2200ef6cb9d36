"""训练歌词模型：`python train.py`。

配置在 config.py，也可用同名小写参数覆盖（`python train.py --help`）。
中断后再次运行同一命令，就从 latest.pt 接着训练，结果与不中断时逐位相同。
"""

import contextlib
import dataclasses
import errno
import itertools
import math
import os
import secrets
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import checkpoint
import config as configuration
import generation
import runtime
import tracking
from checkpoint import BEST, LATEST, METRICS, CheckpointError
from config import UserError
from corpus.cleaning import CLEANING_VERSION
from corpus.files import CorpusError, find_files, fingerprint_before, fingerprint_files
from corpus.inspection import inspect
from corpus.tokens import IGNORED, Ahead, Batches, Corpus, prepare, validation_batches
from model import GPT, ModelConfig
from optimizer import build_optimizers, learning_rate_at, set_learning_rate
from runtime import Display, PeerError, Processes, StopSignals, duration, signal_name
from tokenizer import Tokenizer, TokenizerError
from tracking import MetricsFile, SwanLab, Tracker

DESCRIPTION = "训练中文歌词模型。常量与说明都在 config.py；这里的参数覆盖它们。"


def main(argv: Sequence[str]) -> int:
    """返回退出码：0 完成；1 另一个进程出错；128+n 被信号 n 停下，已保存。"""
    config = configuration.resolve(argv, runtime.has_accelerator(), "train.py", DESCRIPTION)
    if config.inspect is not None:
        return look_at_corpus(config)
    processes = runtime.Processes()
    display = Display(quiet=not processes.is_main)
    stop = StopSignals(same_seconds=3.0 if processes.count > 1 else 1.0, say=lambda n: announce_signal(n, display))
    with stop.installed():
        try:
            return train(config, processes, display, stop)
        except PeerError as error:
            display.line(f"同一次训练的另一个进程先结束了（原因见它的消息），训练随之停下。{error}".rstrip())
            return 1
        except (RuntimeError, MemoryError) as error:
            if not configuration.is_out_of_memory(error):
                raise
            raise UserError("内存或显存不足：请减小 --micro_batch_size；已是 1 时减小 --max_seq_len 或模型") from None
        except KeyboardInterrupt:
            display.line("已中断；上次保存之后的进度没有保存。" if stop.graceful else "已中断；训练还没有开始。")
            return 128 + (stop.received or signal.SIGINT)


def train(config: Any, processes: Processes, display: Display, stop: StopSignals) -> int:
    """从头到尾的一次训练。"""
    # 1. 设备、精度、种子、进程
    environment = runtime.setup(config.device, config.use_amp, config.seed, processes)
    announce(config, environment, display)

    with contextlib.ExitStack() as held:
        # 2. 接着训练，还是从头开始
        def look_around() -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
            refuse_idle_processes(config, processes)
            require_writable_folders(config)
            held.enter_context(checkpoint.exclusive(config.checkpoint_dir))
            return find_previous_run(config)

        previous, initial = processes.from_main(look_around)
        config = with_architecture_of(previous or initial, config)
        if previous is not None and previous["iter"] >= config.train_iters and not previous["evaluation_due"]:
            announce_finished(previous, config, display)
            return 0

        # 3. 语料：清洗、分词、缓存
        corpus = prepare_corpus(config, processes, previous or initial, display)
        if previous is None and processes.is_main:
            archive_earlier_run(config, display)

        # 4. 模型、优化器
        trainer = Trainer(config, environment, corpus, previous, display, initial)
        del previous, initial  # 大模型的检查点有一个多 GB，不必一直占着内存

        # 5. 训练循环
        signal_number = trainer.run(stop)

        # 6. 收尾
        code = announce_end(trainer, signal_number)
        processes.finish()
        return code


def output_folders(config: Any) -> list[Path]:
    """训练自己写的文件夹：在歌词文件夹里面时，不当作歌词读。"""
    written = [config.checkpoint_dir, config.cache_dir, configuration.REPOSITORY / "swanlog"]
    return written + ([config.inspect] if config.inspect is not None else [])


def look_at_corpus(config: Any) -> int:
    """`--inspect`：把读到的歌写出来给人看，不训练。"""
    display = Display()
    report = inspect(
        config.lyrics_dir, config.inspect, config.val_fraction, output_folders(config), display.line, display.progress
    )
    announce_reading(report, display)
    display.line(f"写在 {config.inspect}：songs.txt 是要训练的歌，dropped.txt 是没有用的歌，files.txt 是略过的文件")
    return 0


def prepare_corpus(config: Any, processes: Processes, previous: dict[str, Any] | None, display: Display) -> Corpus:
    """主进程先准备；然后别的机器各由一个进程准备（共享文件夹时只是读缓存），其余进程最后读缓存。

    Raises:
        CorpusError: 这台机器上的语料与主进程的不同。
    """
    began = time.monotonic()

    def prepare_here(tokenizer: Tokenizer | None) -> Corpus:
        return prepare(
            config.lyrics_dir,
            config.cache_dir,
            tokenizer_file(config),
            config.bpe_vocab_size,
            config.val_fraction,
            tokenizer=tokenizer,
            say=display.line,
            progress=display.progress,
            outputs=output_folders(config),
        )

    made: list[Corpus] = []

    def prepare_first() -> tuple[bytes, str]:
        made.append(prepare_here(Tokenizer(previous["tokenizer"]) if previous else None))
        return made[0].tokenizer.model_bytes, made[0].fingerprint

    model_bytes, fingerprint = processes.from_main(prepare_first)
    for everyone in (False, True):
        if not made and (everyone or processes.local_rank == 0):
            made.append(prepare_here(Tokenizer(model_bytes)))
        processes.barrier()
    (corpus,) = made
    if corpus.fingerprint != fingerprint:
        raise CorpusError(f"这台机器上 {config.lyrics_dir} 的内容与主进程的不同")
    announce_corpus(corpus.report, config, display)
    display.line(f"  语料备好，用时 {time.monotonic() - began:.1f} 秒")
    return corpus


# ---------------------------------------------------------------------------
# 接着训练，还是从头开始
# ---------------------------------------------------------------------------


def find_previous_run(config: Any) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """（可以接着训练的 latest.pt，INIT_FROM 的检查点）：至多有一个，从头训练时都是 None。

    Raises:
        UserError: latest.pt 损坏，或它的架构、分词器、语料与现在的设置不同。
        CheckpointError: INIT_FROM 的检查点不存在或损坏。
    """
    latest = config.checkpoint_dir / LATEST
    if not config.resume or not latest.exists():
        if config.init_from is not None and config.init_from.resolve().parent == config.checkpoint_dir.resolve():
            raise UserError(
                f"INIT_FROM 就在 {config.checkpoint_dir} 里，开始训练会把它移走：请另给一个 --checkpoint_dir"
            )
        initial = checkpoint.load(config.init_from) if config.init_from is not None else None
        if initial is not None:
            checkpoint.restore(initial, config.init_from)  # 不合用的现在就说，不等语料备好
        return None, initial
    try:
        previous = checkpoint.load(latest, for_resume=True)
    except CheckpointError as error:
        raise UserError(f"{error}\n请恢复它的备份；或用 --resume false 把它归档并从头训练") from None
    refuse_if_different(previous, with_architecture_of(previous, config))
    return previous, None


ARCHITECTURE = ("n_layers", "n_heads", "n_embed", "max_seq_len")


def with_architecture_of(contents: dict[str, Any] | None, config: Any) -> Any:
    """微调时架构与词表随检查点，不论现在的设置。"""
    if config.init_from is None or contents is None:
        return config
    found = contents["model_config"]
    return dataclasses.replace(
        config, **{name: found[name] for name in ARCHITECTURE}, bpe_vocab_size=found["vocab_size"]
    )


def archive_earlier_run(config: Any, display: Display) -> None:
    """从头开始之前，把检查点文件夹里别的训练的结果移走。语料备好了才移，写错文件夹名不会动到它们。"""
    try:
        moved = checkpoint.archive(config.checkpoint_dir)
    except OSError as error:
        raise UserError(f"移不动 {config.checkpoint_dir} 里旧的结果：{error.strerror}") from None
    if moved is not None:
        display.line(f"上一次训练的结果已移入 {moved}")


def refuse_idle_processes(config: Any, processes: Processes) -> None:
    if processes.count > config.batch_size:
        raise UserError(f"{processes.count} 个进程分不了每步 {config.batch_size} 个序列：请加大 --batch_size")


def require_writable_folders(config: Any) -> None:
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


def refuse_if_different(previous: dict[str, Any], config: Any) -> None:
    """架构、词表、优化器或语料与检查点不同时拒绝开始，列出差别和出路。"""
    now = configuration.as_plain_dict(config)
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


def corpus_changes(saved: Any, config: Any) -> list[str]:
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


# ---------------------------------------------------------------------------
# 训练
# ---------------------------------------------------------------------------


ADAPTING_STEPS = 10  # 启动后的头几步：显存不足就减半微批次，编译不了就不编译；之后这些都是真的错误
MOST_SKIPPED_IN_A_ROW = 5  # 连续这么多步的损失或梯度不是有限的数，就停下
DONE, COMPILER_FAILED, OUT_OF_MEMORY, ABANDONED = range(4)  # 一次前向与反向的结局；各进程取最大的一个


class Abandoned(Exception):
    """收到停止的信号，手上的事没做完就放下；状态还停在上一步之后。"""


class Trainer:
    """模型、优化器与进度：一次训练中会变的一切都在这里，也都存进 latest.pt。"""

    def __init__(
        self,
        config: Any,
        environment: runtime.Runtime,
        corpus: Corpus,
        previous: dict[str, Any] | None,
        display: Display,
        initial: dict[str, Any] | None = None,
    ) -> None:
        self.config, self.environment, self.corpus, self.display = config, environment, corpus, display
        self.processes, self.tokenizer = environment.processes, corpus.tokenizer
        self.iteration = 0  # 已完成的优化步数
        self.evaluation_due = False  # 这一步之后该评估，还没有评估完
        self.skipped_steps = self.skipped_in_a_row = 0  # 损失或梯度不是有限的数而跳过的步数
        self.val_loss: float | None = None
        self.val_bpc: float | None = None
        self.best_val_loss: float | None = None
        self.best_val_bpc: float | None = None
        self.seed = config.seed
        self.run_id = secrets.token_hex(8)
        self.model = self._build_model(previous, initial)
        self.optimizers = build_optimizers(
            config.optimizer, self.model, config.learning_rate, config.muon_learning_rate, config.weight_decay
        )
        self.scaler = torch.amp.GradScaler(environment.device.type, enabled=environment.needs_scaler)
        if previous is not None:
            self._restore(previous)
        self.processes.copy_from_main(parameter.data for parameter in self.model.parameters())
        self.batches = Batches(corpus.train, config.max_seq_len, config.batch_size, self.seed)
        self.rows = self.processes.share(config.batch_size)  # 每批里归这个进程的序列
        self.batches_ahead = Ahead(self._batch)
        most_rows = -(-config.batch_size // self.processes.count)
        self.micro_batch_size = min(config.micro_batch_size or most_rows, most_rows)  # 各进程相同
        self.loss_function, self.compiled = self._compile()
        self.warmup = min(config.warmup_iters, max(0, config.train_iters - 1))
        self.steps_taken = 0  # 本次启动以来的步数
        self.stop = StopSignals()
        self.speed = Speedometer(self)
        self.tracker = Tracker(None, None)

    def _build_model(self, previous: dict[str, Any] | None, initial: dict[str, Any] | None) -> GPT:
        config = self.config
        if previous is not None:
            model, _ = checkpoint.restore(previous, config.checkpoint_dir / LATEST, config.dropout)
        elif initial is not None:
            model, _ = checkpoint.restore(initial, config.init_from, config.dropout)
            self.display.line(f"微调：权重、架构与分词器取自 {config.init_from}（第 {initial['iter']} 步）")
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
        model.activation_checkpointing = config.activation_checkpointing
        return model.to(self.environment.device)

    def _restore(self, previous: dict[str, Any]) -> None:
        path = self.config.checkpoint_dir / LATEST
        for name, optimizer in self.optimizers.items():
            checkpoint.restore_optimizer(optimizer, previous["optimizer"].get(name), path)
        if self.scaler.is_enabled() and previous["scaler"]:
            self.scaler.load_state_dict(previous["scaler"])
        self.iteration, self.evaluation_due = previous["iter"], previous["evaluation_due"]
        self.skipped_steps = previous["skipped_steps"]
        self.val_loss, self.val_bpc = previous["val_loss"], previous["val_bpc"]
        self.best_val_loss, self.best_val_bpc = previous["best_val_loss"], previous["best_val_bpc"]
        self.seed, self.run_id = previous["rng"]["seed"], previous["run_id"]
        self._announce_resumed(previous)
        if previous["corpus"] != self._corpus_identity():
            self._start_new_best()

    def _corpus_identity(self) -> dict[str, Any]:
        return {"files": self.corpus.fingerprint, "cleaning": CLEANING_VERSION}

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
        moved = checkpoint.archive(self.config.checkpoint_dir, [BEST]) if self.processes.is_main else None
        self.best_val_loss = self.best_val_bpc = None
        self.display.line("  语料或清洗的规则已变：沿用检查点的分词器，这次训练不再能逐位重现")
        self.display.line(f"  旧语料上的 best.pt 留在 {moved}" if moved else "  验证集已变，最佳成绩重新计")

    def _start_tracking(self) -> Tracker:
        config = self.config
        if not self.processes.is_main:
            return Tracker(None, None)
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
            return torch.compile(self.model.loss, dynamic=False), True  # 微批次减半后另编译一次，不要变成较慢的动态形状
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
        self._warn_if_disk_is_small(inside + embedding)
        if self.compiled:
            self.display.line("第一步要先编译模型，可能要一两分钟 …")

    def _warn_if_disk_is_small(self, parameters: int) -> None:
        """best.pt 一份权重，latest.pt 另有优化器的两份；换成新的之前，新旧 latest.pt 同时在磁盘上。"""
        directory, copy = self.config.checkpoint_dir, 4 * parameters
        wanted = {BEST: copy, LATEST: 3 * copy}
        needed = 3 * copy + sum(size for name, size in wanted.items() if not (directory / name).exists())
        free = shutil.disk_usage(directory).free if self.processes.is_main else needed
        if free < needed:
            self.display.line(
                f"注意：{directory} 所在磁盘剩 {free / 1e9:.2f} GB，存检查点约需 {needed / 1e9:.2f} GB，请先腾出空间"
            )

    # ---- 循环 ----

    def run(self, stop: StopSignals) -> int | None:
        """训练到 train_iters；被信号停下时保存并返回信号编号，否则返回 None。"""
        self.stop = stop
        try:
            self.tracker = self._start_tracking()
            self.announce()
            stop.graceful = True  # 从这里起才有可保存的
            self.speed.restart()
            signal_number = self._loop()
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            if not interrupted and not isinstance(error, UserError):
                self.display.line(f"出错：{error!r:.200}，正在收尾 …")
            try:
                if isinstance(error, PeerError):  # 别的进程没了，自己的状态还停在完整的一步上
                    self.save_latest()
            finally:
                self.tracker.finish("aborted" if interrupted else "crashed", error=repr(error))
            raise
        self.tracker.finish("success" if signal_number is None else "aborted")
        return signal_number

    def _loop(self) -> int | None:
        config = self.config
        while True:
            if self.evaluation_due:
                with self.speed.paused():
                    self.evaluate()
            signal_number = self._agreed_signal()
            last = self.iteration >= config.train_iters and not self.evaluation_due
            ending = last or bool(signal_number)
            if ending or (self.steps_taken and self.iteration % config.save_interval == 0):
                with self.speed.paused():
                    self.save_latest(ending)
                signal_number = self._agreed_signal()  # 保存时收到的：刚存好，不必再走一步
                ending = ending or bool(signal_number)
            if ending:
                return None if last else signal_number
            with contextlib.suppress(Abandoned):
                self._step_and_log()

    def _agreed_signal(self) -> int:
        """任何一个进程收到的信号；没有则为 0。"""
        return self.processes.largest(self.stop.received or 0)

    def _step_and_log(self) -> None:
        config = self.config
        loss, gradient_norm, learning_rate = self.step()
        last = self.iteration == config.train_iters
        self.evaluation_due = last or self.iteration % config.eval_interval == 0
        if last or self.iteration % config.log_interval == 0 or self.iteration == 1:
            self.log(loss, gradient_norm, learning_rate)
        self.display.progress(self.speed.progress_line())

    def step(self) -> tuple[float, float, float]:
        """一个优化步。返回 (平均损失, 裁剪前的梯度范数, 学习率)；前两个有一个不是有限的数，就不更新权重。"""
        config = self.config
        learning_rate = learning_rate_at(
            self.iteration, config.train_iters, self.warmup, config.learning_rate, config.min_lr
        )
        for optimizer in self.optimizers.values():
            set_learning_rate(optimizer, learning_rate / config.learning_rate)
        x, y = (part.to(self.environment.device, non_blocking=True) for part in self.batches_ahead.at(self.iteration))
        total = self._forward_backward(x, y)
        self.processes.add([total, *(parameter.grad for parameter in self.model.parameters())])
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        loss, gradient_norm = torch.stack([total, norm.to(total)]).tolist()  # 每步只等加速卡这一次
        finite = math.isfinite(loss) and math.isfinite(gradient_norm)
        if finite:
            for optimizer in self.optimizers.values():
                self.scaler.step(optimizer)
        self.scaler.update()
        self.model.zero_grad(set_to_none=True)
        self.iteration += 1
        self.steps_taken += 1
        self.skipped_in_a_row = 0 if finite else self._skipped(loss, gradient_norm)
        return loss, gradient_norm, learning_rate

    def _batch(self, step: int) -> list[Tensor]:
        """第 step 步归这个进程的输入与目标，各 (序列数, T)；在另一个线程里备好。"""
        parts = [torch.from_numpy(part[self.rows]) for part in self.batches.at(step)]
        return [part.pin_memory() for part in parts] if self.environment.device.type == "cuda" else parts

    def _skipped(self, loss: float, gradient_norm: float) -> int:
        """记下跳过的一步，返回连续跳过的步数。

        Raises:
            UserError: 连续跳过太多步。
        """
        self.skipped_steps += 1
        if self.scaler.is_enabled() and math.isfinite(loss) and self.scaler.get_scale() >= 1:
            return self.skipped_in_a_row  # fp16 的放大倍数还在往下试探，是常事
        found = f"损失 {loss:.4f}，梯度 {gradient_norm:.4f}"
        self.display.line(f"第 {self.iteration} 步跳过，权重不变：{found}（共跳过 {self.skipped_steps} 步）")
        if self.skipped_in_a_row + 1 == MOST_SKIPPED_IN_A_ROW:
            if not self.processes.is_main:  # 各进程同时到这里，由主进程来说
                raise PeerError
            raise UserError(
                f"连续 {MOST_SKIPPED_IN_A_ROW} 步的损失或梯度不是有限的数，停在第 {self.iteration} 步（{found}）。\n"
                "上一次的 latest.pt 完好：请调小 --learning_rate 或 --grad_clip，或加 --use_amp false，"
                "再运行就从它接着训练"
            )
        return self.skipped_in_a_row + 1

    def _forward_backward(self, x: Tensor, y: Tensor) -> Tensor:
        """这个进程的那部分损失与梯度，各进程相加就是整批的平均；按微批次分几次做。

        头几步里，显存不足就把各进程的微批次减半重来，编译不了就逐步执行。
        """
        adapting = self.steps_taken < ADAPTING_STEPS
        while True:
            loss, problem = None, DONE
            try:
                loss = self._accumulate(x, y)
            except Exception as error:
                problem = self._problem_of(error, adapting)
            # 到了 except 之外再重来：异常还挂着那次前向的全部张量。
            if adapting:
                problem = self.processes.largest(problem)
            if problem == DONE:
                return loss
            self.model.zero_grad(set_to_none=True)
            if problem == ABANDONED:
                raise Abandoned
            if problem == OUT_OF_MEMORY:
                self._halve_micro_batch()

    def _problem_of(self, error: Exception, adapting: bool) -> int:
        """头几步里对付得了的错误；别的照常抛出。"""
        if configuration.is_out_of_memory(error) and adapting and self.micro_batch_size > 1:
            return OUT_OF_MEMORY
        if not (adapting and self.compiled and _from_compiler(error)):
            raise error
        if self.stop.received:  # 编译器多半是被同一个信号停下的，不能因此就不编译
            return ABANDONED
        self.loss_function, self.compiled = self._without_compile(error), False
        return COMPILER_FAILED

    def _halve_micro_batch(self) -> None:
        self.micro_batch_size = max(1, (self.micro_batch_size + 1) // 2)
        if self.environment.device.type == "cuda":
            torch.cuda.empty_cache()
        self.display.line(
            f"显存不足：微批次减为 {self.micro_batch_size}，多分几次累积，每步的数学不变"
            f"（在 config.py 里设 MICRO_BATCH_SIZE = {self.micro_batch_size} 可省去这次试探）"
        )

    def _accumulate(self, x: Tensor, y: Tensor) -> Tensor:
        runtime.seed_step(self.seed, self.iteration, self.processes.rank)
        self.model.train()
        size = self.micro_batch_size
        targets = self.config.batch_size * self.config.max_seq_len  # 整批的目标数，含别的进程的
        total = torch.zeros((), device=x.device)
        for start in range(0, len(x), size):
            with self.environment.autocast():
                loss = self.loss_function(x[start : start + size], y[start : start + size]) / targets
            self.scaler.scale(loss).backward()
            total += loss.detach()
        return total

    # ---- 评估、记录、保存 ----

    def evaluate(self) -> None:
        """在留出的歌上算损失与每字比特数，更好就存 best.pt，再试写一段；中途收到信号就放下，下次启动再做。"""
        measured = self.validation_loss()
        if measured is None:
            return
        self.val_loss, self.val_bpc = measured
        self.evaluation_due = False
        better = math.isfinite(self.val_loss) and (self.best_val_loss is None or self.val_loss < self.best_val_loss)
        saved = better and self._save(BEST, self._model_contents())
        if saved:
            self.best_val_loss, self.best_val_bpc = self.val_loss, self.val_bpc
        if not self.processes.is_main:
            return
        event = {"iter": self.iteration, "val_loss": self.val_loss, "val_bpc": self.val_bpc, "time": time.time()}
        self.tracker.log(event)

        say = self.display.line
        say(f"──── 评估 · 第 {self.iteration} 步 " + "─" * 30)
        unigram = self.corpus.report["unigram_bpc"]
        best = f"至今最好 {self.best_val_loss:.4f}" if self.best_val_loss is not None else "还没有最好的"
        verdict = f"至今最好，已存 {BEST}" if saved else best
        say(f"验证损失 {self.val_loss:.4f} · {self.val_bpc:.3f} 比特/字（字一元模型 {unigram:.3f}）· {verdict}")
        sample = self.write_sample()
        for line in sample.splitlines():
            say(f"  {line}")
        say("─" * 50)
        self.tracker.log_sample(self.config.generate_prompt, sample, self.iteration)

    def validation_loss(self) -> tuple[float, float] | None:
        """(每词元损失 nat, 每字比特数)；中途收到信号则为 None。各进程各算一份，相加。

        比特数以验证歌曲的字数（含换行、歌名、歌手）为分母，各种词表可比。
        """
        config, processes = self.config, self.processes
        windows = config.eval_iters * config.batch_size  # 与微批次的大小、进程数无关
        characters = torch.from_numpy(self.tokenizer.token_characters)
        self.model.eval()
        sums = torch.zeros(3, dtype=torch.float64)  # 损失之和（nat）、词元数、字数
        batches = validation_batches(
            self.corpus.val, config.max_seq_len, self.micro_batch_size, windows, processes.rank, processes.count
        )
        with torch.no_grad(), self.environment.autocast():
            for x, y in batches:
                if self._agreed_signal():
                    return None
                targets = torch.from_numpy(y)
                device = self.environment.device
                nats = self.model.loss(torch.from_numpy(x).to(device), targets.to(device)).item() if len(x) else 0.0
                real = targets[targets != IGNORED]
                sums += torch.tensor([nats, real.numel(), int(characters[real].sum())], dtype=torch.float64)
        processes.add([sums])
        nats, tokens, written = sums.tolist()
        return nats / tokens, nats / math.log(2) / max(1.0, written)

    def write_sample(self) -> str:
        """用固定的种子从 GENERATE_PROMPT 试写一段。"""
        config = self.config
        self.model.eval()
        prompt = self.tokenizer.song(config.generate_prompt)
        sampling = generation.Sampling(max_tokens=config.generate_tokens, seed=config.seed)
        written = generation.generate(
            self.model,
            prompt,
            sampling,
            self.tokenizer.eos_id,
            self.tokenizer.never_written,
            refused_ids=self.tokenizer.control_characters,
        )
        going_on = itertools.takewhile(lambda step: not self.stop.received, written)
        return config.generate_prompt + self.tokenizer.decode(token for step in going_on for _, token in step)

    def log(self, loss: float, gradient_norm: float, learning_rate: float) -> None:
        """一行日志和一条记录。"""
        speed = self.speed.lap()
        if not self.processes.is_main:
            return
        peak = runtime.peak_flops(self.environment.device)
        per_device = speed * self.model.flops_per_token() / self.processes.count
        mfu = per_device / peak if peak and self.environment.amp_dtype else None
        memory = runtime.peak_memory_gb(self.environment.device)
        self.tracker.log(
            {
                "iter": self.iteration,
                "train_loss": loss,
                "grad_norm": gradient_norm,
                "skipped_steps": self.skipped_steps,
                "lr": learning_rate,
                "tokens_per_s": speed,
                "mfu": mfu,
                "peak_memory_gb": memory,
                "time": time.time(),
            }
        )
        parts = [
            f"步 {self.iteration}/{self.config.train_iters}",
            f"损失 {loss:.4f}",
            f"学习率 {learning_rate:.2e}",
            f"梯度 {gradient_norm:.2f}",
            f"{speed:,.0f} 词元/秒",
            f"MFU {mfu:.1%}" if mfu is not None else "",
            f"{'显存' if self.environment.device.type == 'cuda' else '内存'} {memory:.1f} GB" if memory else "",
            f"剩余 {duration(self.speed.seconds_left())}",
        ]
        self.display.line(" | ".join(part for part in parts if part))

    def _model_contents(self) -> dict[str, Any]:
        plain = configuration.as_plain_dict(self.config)
        statistics = {name: value for name, value in self.corpus.report.items() if type(value) in (int, float)}
        losses = self.val_loss, self.val_bpc
        return checkpoint.model_contents(
            self.model, self.tokenizer, plain, self.iteration, *losses, statistics, self._corpus_identity()
        )

    def save_latest(self, ending: bool = False) -> None:
        """存 latest.pt。写不进去时说一句，训练继续，到下一个保存点再试。

        Raises:
            UserError: 权重里有 nan 或 inf，不存；或这是结束前的一次（ending），没有下一次了。
        """
        contents = self._model_contents() | {
            "optimizer": {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "rng": {"seed": self.seed},  # 每步的随机性由 (种子, 步数) 决定
            "best_val_loss": self.best_val_loss,
            "best_val_bpc": self.best_val_bpc,
            "evaluation_due": self.evaluation_due,
            "skipped_steps": self.skipped_steps,
            "run_id": self.run_id,
        }
        if not self._save(LATEST, contents) and ending:
            path = self.config.checkpoint_dir / LATEST
            before = "上一次存的完好，" if path.exists() else ""
            raise UserError(f"最后一次没能存下 {path}（原因见上）；{before}腾出空间后再运行，就从上一次存的接着训练")

    def _save(self, name: str, contents: dict[str, Any]) -> bool:
        """主进程存一个检查点；返回是否存好。别的进程不存，当作存好。"""
        if not self.processes.is_main:
            return True
        if not torch.stack([parameter.isfinite().all() for parameter in self.model.parameters()]).all():
            raise UserError(
                f"第 {self.iteration} 步之后权重里有 nan 或 inf，已停下，没有存。\n"
                f"上一次的 {LATEST} 完好：请调小 --learning_rate，再运行就从它接着训练"
            )
        path = self.config.checkpoint_dir / name
        try:
            checkpoint.save(path, contents)
        except OSError as error:
            reason = "磁盘满了" if error.errno == errno.ENOSPC else error.strerror or error
            before = "已有的检查点完好，" if path.exists() else ""
            self.display.line(f"没能存下 {path}：{reason}。{before}训练继续")
            return False
        return True


class Speedometer:
    """训练速度：不计评估与保存的时间；第一行日志含编译。"""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
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


def announce_signal(number: int, display: Display) -> None:
    display.urgent(f"收到 {signal_name(number)}：做完这一步就保存、退出 …（再来一次就立即退出，不保存）")


def announce_corpus(report: dict[str, Any], config: Any, display: Display) -> None:
    say = display.line
    announce_reading(report, display)
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


def announce_finished(previous: dict[str, Any], config: Any, display: Display) -> None:
    display.line(f"这次训练已经完成（{previous['iter']} / {config.train_iters} 步）。")
    display.line(f"  写歌词：{inference_command(config)}")
    display.line(f"  再训练：同一命令加上 --train_iters {previous['iter'] * 2}")
    display.line("  从头来：同一命令加上 --resume false（旧结果移入 archive-…/）")


def announce_end(trainer: Trainer, signal_number: int | None) -> int:
    config, say = trainer.config, trainer.display.line
    if signal_number is not None:
        say(
            f"收到 {signal_name(signal_number)}：已保存 {config.checkpoint_dir / LATEST}（第 {trainer.iteration} 步）。"
        )
        say("再次运行同一命令，就从这里接着训练。")
        return 128 + signal_number
    if trainer.best_val_loss is None:
        say(f"训练完成：{trainer.iteration} 步，但每次评估的损失都不是有限的数，没有 {BEST}。")
        return 0
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


def leave(code: int) -> None:
    """退出前最后一步：SwanLab 或进程组还卡着，就不等它们的退出钩子。"""
    tracking.leave(code)
    runtime.leave(code)


if __name__ == "__main__":
    user_errors = (UserError, CorpusError, CheckpointError, TokenizerError, runtime.DeviceError)
    configuration.run_script(main, *user_errors, leave=leave)
