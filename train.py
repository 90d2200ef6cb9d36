"""训练歌词模型：`python train.py`。

配置在 config.py，也可用同名小写参数覆盖（`python train.py --help`）。
中断后再次运行同一命令，就从 latest.pt 接着训练，结果与不中断时逐位相同。
"""

import contextlib
import math
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

import flags
from corpus.batches import Batches, Prefetcher
from corpus.files import CorpusError
from corpus.tokens import Corpus
from corpus.weights import parse_weights
from flags import RunConfig
from optimizer import WeightAverage, build_optimizers, scheduled_rate, set_learning_rate, update_unless
from terminal import Display, UserError, is_out_of_memory, run_script
from tokenizer import TokenizerError
from training import checkpoint, processes, report, resume
from training.budget import fitted
from training.checkpoint import METRICS, CheckpointError
from training.data import look_at_corpus, prepare_corpus
from training.device import DeviceError, Runtime, best_preset, native_half, peak_flops, peak_memory_gb, setup
from training.distillation import Distillation, load_teachers
from training.fallbacks import Abandoned, ForwardBackward
from training.memory import first_micro_batch, free_bytes, step_bytes
from training.processes import CommunicationError, PeerError, Processes, StopSignals
from training.progress import Progress
from training.saving import Saver, corpus_identity
from training.skipped import SkippedSteps
from training.tracking import MetricsFile, SwanLab
from training.validation import validation_loss, write_sample

DESCRIPTION = "训练中文歌词模型。常量与说明都在 config.py；这里的参数覆盖它们。"


def main(argv: Sequence[str]) -> int:
    """返回退出码：0 完成；1 另一个进程出错；128+n 被信号 n 停下，已保存。"""
    config = flags.resolve(argv, best_preset(), "train.py", DESCRIPTION)
    if config.inspect is not None:
        return look_at_corpus(config, config.inspect)
    group = Processes()
    display = Display(quiet=not group.is_main)
    stop = StopSignals(3.0 if group.count > 1 else 1.0, lambda number: report.announce_signal(number, display))
    with stop.installed():
        try:
            return train(config, group, display, stop)
        except PeerError as error:
            display.line(f"同一次训练的另一个进程先结束了（原因见它的消息），训练随之停下。{error}".rstrip())
            return 1
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError("内存或显存不足：请减小 --micro_batch_size；已是 1 时减小 --max_seq_len 或模型") from None
        except KeyboardInterrupt:
            display.line("已中断；上次保存之后的进度没有保存。" if stop.graceful else "已中断；训练还没有开始。")
            return 128 + (stop.received or signal.SIGINT)


def train(config: RunConfig, group: Processes, display: Display, stop: StopSignals) -> int:
    """从头到尾的一次训练。"""
    # 1. 设备、精度、种子、进程
    environment = setup(config.device, config.use_amp, config.seed, group)
    report.announce(config, environment, display)

    with contextlib.ExitStack() as held:
        # 2. 接着训练，还是从头开始
        def look_around() -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
            resume.refuse_idle_processes(config, group)
            resume.require_writable_folders(config)
            held.enter_context(checkpoint.exclusive(config.checkpoint_dir))
            return resume.find_previous_run(config)

        previous, initial = group.broadcast_result(look_around)
        config = resume.with_architecture_of(previous or initial, config)

        # 3. 语料：清洗、分词、缓存；语料小，步数随它来
        teachers = group.broadcast_result(lambda: load_teachers(config))
        corpus = prepare_corpus(config, group, previous or initial or next(iter(teachers), None), display)
        windows = corpus.windows(config.max_seq_len, parse_weights(config.lyrics_weights))
        config = fitted(config, windows, group.count, display.line)
        if previous is not None and resume.is_finished(previous, config):
            report.announce_finished(previous, config, display)
            return 0
        if previous is None and group.is_main:
            resume.archive_earlier_run(config, display)

        # 4. 模型、优化器
        trainer = Trainer(config, environment, corpus, previous, initial, teachers, display)
        del previous, initial, teachers  # 大模型的检查点有一个多 GB，不必一直占着内存

        # 5. 训练循环
        signal_number = trainer.run(stop)

        # 6. 收尾
        unigram = corpus.report["unigram_bpc"]
        code = report.announce_end(trainer.progress, unigram, config, signal_number, display)
        group.finish()
        return code


class Trainer:
    """模型、优化器与进度：一次训练中会变的一切都在这里，也都存进 latest.pt。"""

    def __init__(
        self,
        config: RunConfig,
        environment: Runtime,
        corpus: Corpus,
        previous: dict[str, Any] | None,
        initial: dict[str, Any] | None,
        teachers: Sequence[dict[str, Any]],
        display: Display,
    ) -> None:
        self.config, self.environment, self.corpus, self.display = config, environment, corpus, display
        self.processes, self.tokenizer = environment.processes, corpus.tokenizer
        self.progress = Progress.stored_in(previous) if previous is not None else Progress(config.seed)
        self.model = resume.build_model(config, self.tokenizer.vocab_size, previous, initial, display).to(
            environment.device
        )
        self.model.song_start = self.tokenizer.bos_id if config.separate_songs else None
        self.processes.broadcast_tensors(parameter.data for parameter in self.model.parameters())
        rates = config.learning_rate, config.muon_learning_rate, config.weight_decay
        self.optimizers = build_optimizers(config.optimizer, self.model, *rates, native_half(environment.device))
        self.average = WeightAverage(self.model, config.average * config.train_iters)
        self.scaler = torch.amp.GradScaler(environment.device.type, enabled=environment.needs_scaler)
        trained = self.model, self.average, self.optimizers, self.scaler, self.progress
        self.saver = Saver(config, *trained, corpus, self.processes, display)
        if previous is not None:
            self.saver.restore(previous)
            self.progress.extended_from = resume.extended_from(previous, config, display)
            resume.announce_resumed(previous, config, display)
            if previous["corpus"] != corpus_identity(corpus):
                resume.start_new_best(self.progress, config, self.processes, display)
        elif initial is not None:
            self.progress.evaluation_due = True  # 微调之前的也量一次：best.pt 从不比起点差
        weights = parse_weights(config.lyrics_weights)
        self.held_out = corpus.validation_tokens(weights)
        sizes = config.max_seq_len, config.batch_size
        self.batches = Batches(corpus.training_stream(), *sizes, self.progress.seed, corpus.times(weights))
        self.prefetcher = Prefetcher(self._local_batch)
        step_tokens = config.batch_size * config.max_seq_len
        self.forward_backward = ForwardBackward(
            self.model,
            self.scaler,
            environment,
            self.progress.seed,
            step_tokens,
            self._micro_batch_size(),
            config.use_compile,
            display.line,
            self._distillation(teachers),
        )
        self.warmup = min(config.warmup_iters, max(0, config.train_iters - 1))
        self.steps = SkippedSteps(self.progress, self.scaler, self.processes.is_main, display)
        self.speed = report.Speedometer(environment.device, step_tokens, config.train_iters)
        self.metrics: MetricsFile | None = None  # 只有主进程有
        self.swanlab: SwanLab | None = None
        self.stop = StopSignals()

    def _micro_batch_size(self) -> int:
        config, processes = self.config, self.processes
        rows, free = -(-config.batch_size // processes.count), free_bytes(self.environment.device)
        if config.micro_batch_size is not None:
            return min(config.micro_batch_size, rows)
        least = first_micro_batch(self.model, config, self.environment, rows, free)
        size = -processes.all_reduce_max(-least)  # 各进程相同
        if free is not None:
            needed = step_bytes(self.model, config, size, self.environment.amp_dtype is not None)
            report.announce_memory(size, rows, needed, free, self.display)
        return size

    def _distillation(self, teachers: Sequence[dict[str, Any]]) -> Callable[[Tensor, Tensor], Tensor] | None:
        if not teachers:
            return None
        return Distillation(self.model, teachers, self.tokenizer.model_bytes, self.environment.device).loss

    # ---- 循环 ----

    def run(self, stop: StopSignals) -> int | None:
        """训练到 train_iters；被信号停下时保存并返回信号编号，否则返回 None。"""
        self.stop = self.forward_backward.stop = stop
        try:
            self._start_tracking()
            epochs = self.config.train_iters * self.config.batch_size / self.batches.windows_per_epoch
            where = self.progress.iteration, epochs, self.warmup, self.forward_backward.compiled
            report.announce_model(self.model, self.config, *where, self.display)
            stop.graceful = True  # 从这里起才有可保存的
            self.speed.restart(self.progress.iteration)
            signal_number = self._loop()
        except BaseException as error:
            interrupted = isinstance(error, KeyboardInterrupt)
            if not interrupted and not isinstance(error, UserError):
                self.display.line(f"出错：{error!r:.200}，正在收尾 …")
            try:
                if isinstance(error, PeerError):  # 别的进程没了，自己的状态还停在完整的一步上
                    self.saver.save_latest()
            finally:
                if self.swanlab is not None:
                    self.swanlab.finish("aborted" if interrupted else "crashed", repr(error))
            raise
        if self.swanlab is not None:
            self.swanlab.finish("success" if signal_number is None else "aborted")
        return signal_number

    def _loop(self) -> int | None:
        config, progress, started = self.config, self.progress, self.progress.iteration
        while True:
            if progress.evaluation_due:
                self.steps.settle()
                self.evaluate()
            signal_number = self._agreed_signal()
            stale = config.patience is not None and progress.stale_evaluations >= config.patience
            finished = (stale or progress.iteration >= config.train_iters) and not progress.evaluation_due
            save_due = progress.iteration > started and progress.iteration % config.save_interval == 0
            if finished or signal_number or save_due:
                self.steps.settle()
                with self.speed.paused():
                    self.saver.save_latest(ending=finished or bool(signal_number))
                signal_number = self._agreed_signal()  # 保存时收到的：刚存好，不必再走一步
            if finished or signal_number:
                return None if finished else signal_number
            with contextlib.suppress(Abandoned):
                self.step()
                last = progress.iteration == config.train_iters
                progress.evaluation_due = last or progress.iteration % config.eval_interval == 0
                if last or progress.iteration % config.log_interval == 0 or progress.iteration == 1:
                    self.log()
                self.display.progress(self.speed.progress_line(progress.iteration))

    def step(self) -> None:
        """一个优化步；损失或梯度不是有限的数，就不更新权重。"""
        config, iteration = self.config, self.progress.iteration
        rates = self.warmup, config.learning_rate, config.min_lr
        learning_rate = scheduled_rate(iteration, config.train_iters, *rates, self.progress.extended_from)
        for optimizer in self.optimizers.values():
            set_learning_rate(optimizer, learning_rate / config.learning_rate)
        x, y = (part.to(self.environment.device, non_blocking=True) for part in self.prefetcher.at(iteration))
        total = self.forward_backward(x, y, iteration)
        for optimizer in self.optimizers.values():
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)
        values = torch.stack([total, norm.to(total)])
        update_unless(~values.isfinite().all(), self.optimizers.values(), self.scaler)
        self.model.zero_grad(set_to_none=True)
        self.progress.iteration += 1
        self.average.update(self.progress.iteration)
        self.steps.add(values, learning_rate)

    def _local_batch(self, step: int) -> list[Tensor]:
        """第 step 步归这个进程的输入与目标，各 (序列数, T)；在另一个线程里备好。"""
        rows = self.processes.rank_slice(self.config.batch_size)
        parts = [torch.from_numpy(np.ascontiguousarray(part[rows])) for part in self.batches.at(step)]
        return [part.pin_memory() for part in parts] if self.environment.device.type == "cuda" else parts

    def _agreed_signal(self) -> int:
        """任何一个进程收到的信号；没有则为 0。"""
        return self.processes.all_reduce_max(self.stop.received or 0)

    # ---- 评估、记录、保存 ----

    def evaluate(self) -> None:
        """在留出的歌上算损失与每字比特数，更好就存 best.pt，再试写一段；中途收到信号就放下，下次启动再做。"""
        config, progress = self.config, self.progress
        self.saver.require_finite()
        with self.speed.paused(), self.average.applied():
            measured = validation_loss(
                self.model,
                self.held_out,
                self.tokenizer.token_characters,
                self.environment,
                config.eval_iters * config.batch_size,
                self.forward_backward.micro_batch_size,
                self._agreed_signal,
            )
            if measured is None:
                return
            progress.val_loss, progress.val_bpc = measured
            progress.evaluation_due = False
            best = math.inf if progress.best_val_loss is None else progress.best_val_loss
            better = progress.val_loss < best
            progress.stale_evaluations = 0 if better else progress.stale_evaluations + 1
            saved = better and self.saver.save_best()
            if saved:
                progress.best_val_loss, progress.best_val_bpc = measured
            sample = ""
            if self.processes.is_main:
                sample = write_sample(
                    self.model,
                    self.tokenizer,
                    config.generate_prompt,
                    config.generate_tokens,
                    config.seed,
                    lambda: self.stop.received,
                )
            progress.evaluation_due = bool(self._agreed_signal())  # 试写断在半路：下次再做，记录才与不中断时相同
            if progress.evaluation_due or self.metrics is None:
                return
            event = {"iter": progress.iteration, "val_loss": progress.val_loss, "val_bpc": progress.val_bpc}
            self.metrics.log(event | {"prompt": config.generate_prompt, "sample": sample, "time": time.time()})
            unigram = self.corpus.report["unigram_bpc"]
            report.announce_evaluation(progress, saved, unigram, sample, self.display)

    def log(self) -> None:
        """一行日志和一条记录。"""
        self.steps.settle()
        result = self.steps.latest
        device, iteration = self.environment.device, self.progress.iteration
        speed = self.speed.lap(iteration)
        if self.metrics is None:  # 只有主进程记录
            return
        peak = peak_flops(device) if self.environment.amp_dtype else None
        event = {
            "iter": iteration,
            "train_loss": result.loss,
            "grad_norm": result.gradient_norm,
            "skipped_steps": self.progress.skipped_steps,
            "lr": result.learning_rate,
            "tokens_per_s": speed,
            "mfu": speed * self.model.flops_per_token() / self.processes.count / peak if peak else None,
            "peak_memory_gb": peak_memory_gb(device),
            "time": time.time(),
        }
        self.metrics.log(event)
        seconds_left = self.speed.seconds_left(iteration)
        self.display.line(report.log_line(event, self.config.train_iters, device, seconds_left))

    def _start_tracking(self) -> None:
        config, say = self.config, self.display.line
        if not self.processes.is_main:
            return
        self.metrics = MetricsFile(config.checkpoint_dir / METRICS, self.progress.iteration, say)
        if config.use_swanlab:
            run, plain, folder = self.progress.run_id, flags.as_plain_dict(config), flags.REPOSITORY / "swanlog"
            self.swanlab = SwanLab(config.swanlab_project, run, plain, folder, self.metrics, say)


if __name__ == "__main__":
    user_errors = (UserError, CorpusError, CheckpointError, TokenizerError, DeviceError, CommunicationError)
    run_script(main, *user_errors, leave=processes.leave)
