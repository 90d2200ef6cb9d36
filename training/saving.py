"""训练存进 best.pt 与 latest.pt 的内容；写不进去、权重坏了时怎么办。"""

import errno
from dataclasses import dataclass
from typing import Any

import torch

import flags
from corpus.cleaning import CLEANING_VERSION
from corpus.tokens import Corpus
from flags import RunConfig
from model import GPT
from optimizer import WeightAverage
from terminal import Display, UserError
from training import checkpoint
from training.checkpoint import BEST, LATEST
from training.processes import Processes
from training.progress import Progress


def corpus_identity(corpus: Corpus) -> dict[str, Any]:
    return {"files": corpus.fingerprint, "cleaning": CLEANING_VERSION}


@dataclass
class Saver:
    """一次训练里要存的一切，和怎样存。"""

    config: RunConfig
    model: GPT
    average: WeightAverage
    optimizers: dict[str, torch.optim.Optimizer]
    scaler: torch.amp.GradScaler
    progress: Progress
    corpus: Corpus
    processes: Processes
    display: Display

    def restore(self, previous: dict[str, Any]) -> None:
        """读出 latest.pt 里优化器、权重的平均与 fp16 放大倍数的状态。"""
        self.average.load(previous.get("average", {}))
        for name, optimizer in self.optimizers.items():
            state = previous["optimizer"].get(name)
            checkpoint.restore_optimizer(optimizer, state, self.config.checkpoint_dir / LATEST)
        if self.scaler.is_enabled() and previous["scaler"]:
            self.scaler.load_state_dict(previous["scaler"])

    def save_best(self) -> bool:
        """返回是否存好。"""
        return self._save(BEST, self._model_contents())

    def save_latest(self, ending: bool = False) -> None:
        """写不进去时说一句，训练继续，到下一个保存点再试。

        Raises:
            UserError: 权重里有 nan 或 inf，不存；或这是结束前的一次（ending），没有下一次了。
        """
        self.require_finite()
        contents = self._model_contents() | self.progress.as_contents()
        contents["optimizer"] = {name: optimizer.state_dict() for name, optimizer in self.optimizers.items()}
        contents["average"] = self.average.state()
        contents["scaler"] = self.scaler.state_dict()
        if not self._save(LATEST, contents) and ending:
            path = self.config.checkpoint_dir / LATEST
            before = "上一次存的完好，" if path.exists() else ""
            raise UserError(f"最后一次没能存下 {path}（原因见上）；{before}腾出空间后再运行，就从上一次存的接着训练")

    def _model_contents(self) -> dict[str, Any]:
        plain = flags.as_plain_dict(self.config)
        statistics = {name: value for name, value in self.corpus.report.items() if type(value) in (int, float)}
        figures = self.progress.iteration, self.progress.val_loss, self.progress.val_bpc
        return checkpoint.model_contents(
            self.model, self.corpus.tokenizer, plain, *figures, statistics, corpus_identity(self.corpus)
        )

    def require_finite(self) -> None:
        """
        Raises:
            UserError: 权重里有 nan 或 inf。
        """
        if self.processes.is_main and not torch.stack([p.isfinite().all() for p in self.model.parameters()]).all():
            raise UserError(
                f"第 {self.progress.iteration} 步之后权重里有 nan 或 inf，已停下，没有存。\n"
                f"上一次的 {LATEST} 完好：请调小 --learning_rate，再运行就从它接着训练"
            )

    def _save(self, name: str, contents: dict[str, Any]) -> bool:
        """主进程存一个检查点；返回是否存好。别的进程不存，当作存好。"""
        if not self.processes.is_main:
            return True
        path = self.config.checkpoint_dir / name
        try:
            checkpoint.save(path, contents)
        except OSError as error:
            reason = "磁盘满了" if error.errno == errno.ENOSPC else error.strerror or error
            before = "已有的检查点完好，" if path.exists() else ""
            self.display.line(f"没能存下 {path}：{reason}。{before}训练继续")
            return False
        return True
