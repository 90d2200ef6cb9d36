"""语料小，步数随它来：练到第几十轮，只是把歌背下来。"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

from flags import RunConfig

MOST_EPOCHS = 12  # 从头训练
MOST_TUNING_EPOCHS = 4  # 微调
STEPS_PER_EPOCH = 8  # 一轮至少分成这么多步，再大的批次学不了几步
# 微调：起点已经会写，照从头训练的学习率，头一轮就把它冲坏了（docs/recipe.md）
TUNING_RATES = {"learning_rate": 0.1, "min_lr": 0.1, "muon_learning_rate": 0.3}
TUNING_DROPOUT = 0.1
EVALUATIONS_PER_EPOCH = 2
FEWEST_STEPS = 20


def fitted(config: RunConfig, windows: int, processes: int, say: Callable[[str], None]) -> RunConfig:
    """随语料调整过的配置，命令行上写明的不动；调整了就说一句为什么。

    Args:
        windows: 一轮有几个窗口。
        processes: 每步至少这么多个序列。
    """
    most = MOST_TUNING_EPOCHS if config.init_from is not None else MOST_EPOCHS
    epochs = config.train_iters * config.batch_size / windows
    if not config.fit_to_corpus or epochs <= most:
        return config
    batch = config.batch_size
    if "batch_size" not in config.typed:
        batch = min(batch, max(processes, 2 ** int(math.log2(max(1.0, windows / STEPS_PER_EPOCH)))))
    steps = config.train_iters
    if "train_iters" not in config.typed:
        steps = min(steps, max(FEWEST_STEPS, math.ceil(most * windows / batch)))
    per_epoch = windows / batch
    values: dict[str, Any] = {
        "batch_size": batch,
        "train_iters": steps,
        "warmup_iters": min(config.warmup_iters, max(1, steps // 10)),
        "eval_interval": min(config.eval_interval, max(1, round(per_epoch / EVALUATIONS_PER_EPOCH))),
        "save_interval": min(config.save_interval, max(1, round(per_epoch))),
    }
    if config.init_from is not None:
        values |= {name: float(f"{getattr(config, name) * part:.3g}") for name, part in TUNING_RATES.items()}
        values["dropout"] = max(config.dropout, TUNING_DROPOUT)
    changed = {name: value for name, value in values.items() if value != getattr(config, name)}
    changed = {name: value for name, value in changed.items() if name not in config.typed}
    if not changed:
        return config
    listed = "、".join(f"{name.upper()} {getattr(config, name):g} → {value:g}" for name, value in changed.items())
    say(f"语料只有 {windows} 个窗口，照原来的要反复学 {epochs:.0f} 轮，背下来也不会写，所以：{listed}")
    return dataclasses.replace(config, **changed)
