"""训练中的评估：留出的歌上的损失，和试写的一段。"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch

import generation
from corpus.batches import IGNORED, validation_batches
from model import GPT
from tokenizer import Tokenizer
from training.device import Runtime


def validation_loss(
    model: GPT,
    tokens: np.ndarray,
    token_characters: np.ndarray,
    environment: Runtime,
    windows: int,
    rows: int,
    stopped: Callable[[], int],
) -> tuple[float, float] | None:
    """(每词元损失 nat, 每字比特数)；中途收到信号则为 None。各进程各算一份，相加。

    比特数以验证歌曲的字数（含换行、歌名、歌手）为分母，各种词表可比。

    Args:
        tokens: 留出的歌的词元流。
        token_characters: (V,) 每个词元的字数。
        windows: 最多几个窗口，与微批次的大小、进程数无关。
        rows: 一次前向几个窗口。
        stopped: 任何一个进程收到的信号；没有则为 0。
    """
    device, processes = environment.device, environment.processes
    model.eval()
    sums = torch.zeros(3, dtype=torch.float64)  # 损失之和（nat）、词元数、字数
    batches = validation_batches(tokens, model.config.max_seq_len, rows, windows, processes.rank, processes.count)
    with torch.no_grad(), environment.autocast():
        for x, y in batches:
            if stopped():
                return None
            inputs, targets = (torch.from_numpy(part).to(device) for part in (x, y))
            nats = model.loss(inputs, targets).item() if len(x) else 0.0
            real = y[y != IGNORED]
            sums += torch.tensor([nats, real.size, token_characters[real].sum()], dtype=torch.float64)
    processes.all_reduce_sum([sums])
    nats, count, written = sums.tolist()
    return nats / count, nats / math.log(2) / max(1.0, written)


def write_sample(
    model: GPT, tokenizer: Tokenizer, prompt: str, most: int, seed: int, stopped: Callable[[], int | None]
) -> str:
    """用固定的种子从 prompt 试写一段，最多 most 个词元。"""
    model.eval()
    written = generation.generate(
        model,
        tokenizer.song(prompt),
        generation.Sampling(max_tokens=most, seed=seed),
        tokenizer.eos_id,
        tokenizer.never_written,
        refused_ids=tokenizer.control_characters,
    )
    going_on = itertools.takewhile(lambda step: not stopped(), written)
    return prompt + tokenizer.decode(token for step in going_on for _, token in step)
