"""检查点：原子地保存，安全地读出，归档旧的一次训练。

`best.pt` 自成一体：权重、模型配置、分词器、训练配置；`latest.pt` 另有接着训练所需的一切。
"""

import os
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from model import GPT, ModelConfig
from tokenizer import Tokenizer, TokenizerError

FORMAT = 1
BEST, LATEST, METRICS = "best.pt", "latest.pt", "metrics.jsonl"
MODEL_KEYS = {
    "format": int,
    "model": Mapping,
    "model_config": Mapping,
    "config": Mapping,
    "tokenizer": bytes,
    "iter": int,
    "val_loss": (float, type(None)),
    "val_bpc": (float, type(None)),
}
RESUME_KEYS = {
    "optimizer": Mapping,
    "scaler": Mapping,
    "rng": Mapping,
    "best_val_loss": (float, type(None)),
    "best_val_bpc": (float, type(None)),
    "corpus": str,
    "run_id": str,
}


class CheckpointError(ValueError):
    """检查点不存在、损坏，或不是本仓库的检查点。"""


def save(path: Path, contents: Mapping[str, Any]) -> None:
    """写到旁边的临时文件，落盘后改名；中途断电也不会损坏原来的文件。

    Raises:
        OSError: 磁盘写不进去；原文件不变。
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(contents), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:  # torch 把写文件时的 OSError 包成了 RuntimeError
        raise OSError(f"写不进 {path}（磁盘满了？）") from error
    finally:
        temporary.unlink(missing_ok=True)


def load(path: Path, for_resume: bool = False) -> dict[str, Any]:
    """读检查点到内存（CPU）；只接受数据，不执行文件里的任何代码。

    Args:
        for_resume: 是否还要求接着训练所需的内容。

    Raises:
        CheckpointError: 文件不存在、损坏，或缺少应有的内容。
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"找不到检查点：{path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # 外来的 pickle 会引出与用户无关的英文警告
            contents = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # 损坏的文件会在 zip、pickle、张量各层抛出各种错误
        raise CheckpointError(f"检查点损坏，或不是检查点文件：{path}") from None
    keys = MODEL_KEYS | (RESUME_KEYS if for_resume else {})
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"不是本仓库的检查点（或版本不同）：{path}")
    wrong = [key for key, kind in keys.items() if key not in contents or not isinstance(contents[key], kind)]
    if wrong:
        raise CheckpointError(f"检查点 {path} 缺少 {'、'.join(wrong)}")
    return contents


def model_contents(
    model: GPT,
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    iteration: int,
    val_loss: float | None,
    val_bpc: float | None,
) -> dict[str, Any]:
    """推理所需的全部内容。iteration: 已完成的优化步数。"""
    return {
        "format": FORMAT,
        "model": model.state_dict(),
        "model_config": model.config.as_dict(),
        "config": dict(config),
        "tokenizer": tokenizer.model_bytes,
        "iter": iteration,
        "val_loss": val_loss,
        "val_bpc": val_bpc,
    }


def restore(contents: Mapping[str, Any], path: Path, dropout: float = 0.0) -> tuple[GPT, Tokenizer]:
    """检查点内容 → 模型（fp32，CPU）与分词器。

    Raises:
        CheckpointError: 权重与模型配置对不上，或分词器损坏。
    """
    try:
        model_config = ModelConfig(**{**contents["model_config"], "dropout": dropout})
        tokenizer = Tokenizer(contents["tokenizer"])
        with torch.device("meta"):
            model = GPT(model_config)
        model.load_state_dict(contents["model"], assign=True)
    except (TypeError, ValueError, RuntimeError, TokenizerError) as error:
        raise CheckpointError(f"检查点 {path} 的内容前后不符：{str(error).splitlines()[0]}") from None
    if tokenizer.vocab_size != model_config.vocab_size:
        raise CheckpointError(f"检查点 {path} 的词表与模型大小不符")
    model.requires_grad_(True)
    return model, tokenizer


def archive(directory: Path, names: Sequence[str] = (BEST, LATEST, METRICS)) -> Path | None:
    """把一次训练留下的文件移入 `archive-年月日-时分秒/`；没有可移的返回 None。"""
    found = [directory / name for name in names if (directory / name).exists()]
    if not found:
        return None
    first = target = directory / time.strftime("archive-%Y%m%d-%H%M%S")
    number = 1
    while target.exists():
        number += 1
        target = first.with_name(f"{first.name}-{number}")
    target.mkdir(parents=True)
    for path in found:
        os.replace(path, target / path.name)
    return target
