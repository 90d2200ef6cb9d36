"""检查点：原子地保存，安全地读出，归档旧的一次训练。

`best.pt` 自成一体：权重、模型配置、分词器、训练配置；`latest.pt` 另有接着训练所需的一切。
"""

import contextlib
import os
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model import GPT, ModelConfig
from tokenizer import Tokenizer, TokenizerError

try:
    import fcntl  # 仅 Unix
except ImportError:
    fcntl = None  # type: ignore[assignment]

FORMAT = 1
BEST, LATEST, METRICS = "best.pt", "latest.pt", "metrics.jsonl"


MODEL_KEYS = "format model model_config config tokenizer iter val_loss val_bpc".split()
RESUME_KEYS = "optimizer scaler rng best_val_loss best_val_bpc evaluation_due skipped_steps corpus run_id".split()


class CheckpointError(ValueError):
    """检查点不存在、损坏、不是本仓库的检查点，或正被另一个训练使用。"""


@contextlib.contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """独占一个检查点文件夹；进程无论怎样结束（包括 kill -9），锁都随之放开。

    Raises:
        CheckpointError: 另一个训练正在用它。
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"另一个训练正在使用 {directory}：先停下它，或用 --checkpoint_dir 换一个文件夹"
            ) from None
        except OSError:  # 有的网络文件系统不支持锁
            pass
        yield
    finally:
        os.close(descriptor)


def save(path: Path, contents: Mapping[str, Any]) -> None:
    """写到旁边的临时文件，落盘后改名；中途断电也不会损坏原来的文件。

    Raises:
        OSError: 磁盘写不进去；原文件不变。
    """
    path.parent.mkdir(parents=True, exist_ok=True)  # 训练中文件夹被移走、删掉的，重新建一个
    temporary = path.with_name(f"{path.name}.tmp")  # 名字固定：被 kill -9 多少次，也只剩下一个
    try:
        with open(temporary, "wb") as file:
            torch.save(dict(contents), file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except RuntimeError as error:  # torch 把写文件时的 OSError 包成了 RuntimeError
        cause = error.__cause__ or error.__context__
        raise (cause if isinstance(cause, OSError) else OSError("磁盘满了？")) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def load(path: Path, for_resume: bool = False, mmap: bool = False) -> dict[str, Any]:
    """读检查点到内存（CPU）；只接受数据，不执行文件里的任何代码。

    Args:
        for_resume: 是否还要求接着训练所需的内容。
        mmap: 权重用到时才从文件读；之后文件被改名、覆盖（原子地）都不要紧。

    Raises:
        CheckpointError: 文件不存在、损坏，或缺少应有的内容。
    """
    if not path.is_file():
        raise CheckpointError(f"找不到检查点：{path}")
    try:
        _verify_archive(path)
        contents = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception:  # 损坏的文件会在 zip、pickle、张量各层抛出各种错误
        raise CheckpointError(f"检查点损坏，或不是检查点文件：{path}") from None
    if not isinstance(contents, dict) or contents.get("format") != FORMAT:
        raise CheckpointError(f"不是本仓库的检查点（或版本不同）：{path}")
    missing = [key for key in MODEL_KEYS + (RESUME_KEYS if for_resume else []) if key not in contents]
    if missing:
        raise CheckpointError(f"检查点 {path} 缺少 {'、'.join(missing)}")
    return {"data": {}, "corpus": None} | _printable(contents)  # 早先的检查点没有这两项


def _printable(value: Any) -> Any:
    """别人的检查点里的文字会显示在终端上：去掉能清屏、改标题的控制码。"""
    if isinstance(value, str):
        return "".join(character if character.isprintable() else "?" for character in value)
    if isinstance(value, dict):
        return {_printable(key): _printable(part) for key, part in value.items()}
    return value


def _verify_archive(path: Path) -> None:
    """逐条核对 zip 自带的 CRC-32：torch.load 不查它，权重里翻转一位也照样读入。

    torch.save 从不压缩；压缩过的记录能让一个小文件撑满内存，不收。
    """
    with zipfile.ZipFile(path) as archive:
        # external_attr：torch.save 总是写 0；翻转其中一位，torch 就把记录当作文件夹，读出未初始化的内存
        odd = any(record.compress_type or record.external_attr for record in archive.infolist())
        if odd or archive.testzip() is not None:
            raise zipfile.BadZipFile


def model_contents(
    model: GPT,
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    iteration: int,
    val_loss: float | None,
    val_bpc: float | None,
    data: Mapping[str, float] | None = None,
    corpus: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """推理所需的全部内容。

    Args:
        iteration: 已完成的优化步数。
        data: 语料的统计：歌数、字数、词元数……
        corpus: {"files": 歌词文件的指纹, "cleaning": 清洗的版本}。
    """
    return {
        "format": FORMAT,
        "model": model.state_dict(),
        "model_config": asdict(model.config),
        "config": dict(config),
        "tokenizer": tokenizer.model_bytes,
        "iter": iteration,
        "val_loss": val_loss,
        "val_bpc": val_bpc,
        "data": dict(data or {}),
        "corpus": dict(corpus) if corpus else None,
    }


def restore(contents: Mapping[str, Any], path: Path, dropout: float = 0.0) -> tuple[GPT, Tokenizer]:
    """检查点内容 → 模型（fp32，CPU）与分词器。

    Raises:
        CheckpointError: 权重与模型配置对不上，或分词器损坏。
    """
    try:
        model_config = ModelConfig(**{**contents["model_config"], "dropout": dropout})
        tokenizer = Tokenizer(contents["tokenizer"])
        if tokenizer.vocab_size != model_config.vocab_size:
            raise ValueError("词表与模型大小不符")
        model = _empty_model(model_config)
        model.load_state_dict(contents["model"], assign=True)
        if not all(parameter.isfinite().all() for parameter in model.parameters()):
            raise ValueError("权重里有 nan 或 inf")
        model.song_start = tokenizer.bos_id if contents["config"].get("separate_songs") is True else None
    except (TypeError, ValueError, RuntimeError, TokenizerError) as error:
        raise CheckpointError(f"检查点 {path} 的内容前后不符：{str(error).splitlines()[0]}") from None
    return model.float().requires_grad_(True), tokenizer


def _empty_model(config: ModelConfig) -> GPT:
    """只有形状的模型。不填随机数：在 meta 设备上抽正态随机数要载入八百个模块，一秒。"""
    normal, torch.nn.init.normal_ = torch.nn.init.normal_, lambda tensor, *_, **__: tensor
    try:
        with torch.device("meta"):
            return GPT(config)
    finally:
        torch.nn.init.normal_ = normal


def restore_optimizer(optimizer: torch.optim.Optimizer, saved: Any, path: Path) -> None:
    """载入优化器的状态（动量等）；学习率、衰减这些超参数以现在的为准。

    Raises:
        CheckpointError: 状态与模型的参数对不上。
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = optimizer.state_dict()["param_groups"]
    try:
        if [group["params"] for group in saved["param_groups"]] != [group["params"] for group in groups]:
            raise ValueError("参数的个数不同")
        if saved["state"] and set(saved["state"]) != set(range(len(parameters))):
            raise ValueError("有的参数没有状态")
        for index, state in saved["state"].items():  # 还没走过一步时是空的
            if any(value.dim() and value.shape != parameters[index].shape for value in state.values()):
                raise ValueError("状态与参数的形状不同")
        optimizer.load_state_dict({"state": saved["state"], "param_groups": groups})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"检查点 {path} 的优化器状态与模型不符：{str(error).splitlines()[0]}") from None


def archive(directory: Path, names: Sequence[str] = (LATEST, BEST, METRICS)) -> Path | None:
    """把一次训练留下的文件移入 `archive-年月日-时分秒/`；没有可移的返回 None。

    先移 latest.pt：移到一半断电，剩下的也不会被当作可以接着训练的一套。

    Raises:
        OSError: 移不动。
    """
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
