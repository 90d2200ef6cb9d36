"""一块显卡上的验收：对不对、快不快、默认的一次训练。结果写成一份 Markdown，可以照抄进 docs/measurements.md。

    python tests/gpu.py --out 报告.md                          # 四部分都做，语料用自带样例
    python tests/gpu.py --only right --out 报告.md             # right：对不对，两三分钟；fast：快不快，八分钟
    python tests/gpu.py --only beside --out 报告.md            # beside：benchmark.py，旁边是 transformers，几分钟
    python tests/gpu.py --only run --lyrics_dir 歌词 --out 报告.md    # 默认的 2,000 步，H100 上六分钟

没有显卡时说清楚会做什么，退出码 2。一项出错不妨碍别的，回溯写在报告末尾。
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

import flags  # noqa: E402
import model as model_module  # noqa: E402
from generation import Sampling, TorchStep, generate  # noqa: E402
from model import GPT, ModelConfig  # noqa: E402
from optimizer import WeightAverage, build_optimizers, update_unless  # noqa: E402
from training.device import Runtime, device_name, native_half, peak_flops, setup  # noqa: E402
from training.fallbacks import ForwardBackward  # noqa: E402
from training.memory import first_micro_batch, free_bytes  # noqa: E402
from training.processes import Processes  # noqa: E402
from writing.cuda_graph import RecordedDraw, RecordedStep  # noqa: E402

SMALL = ModelConfig(vocab_size=300, max_seq_len=64, n_layers=2, n_heads=4, n_embed=128)
SHAPES = [(64, 1024), (32, 1024), (16, 512)]
CAPS = [24, 16, 12, 8]  # GB
STEPS = 10
TOKENS = 400


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=["right", "fast", "beside", "run"])
    parser.add_argument("--lyrics_dir", type=Path, default=REPOSITORY / "ChineseLyrics")
    parser.add_argument("--train_iters", type=int, default=2000)
    given = parser.parse_args()
    parts = {
        "right": right,
        "fast": fast,
        "beside": beside,
        "run": lambda: run(given.lyrics_dir.resolve(), given.train_iters),
    }
    chosen = [given.only] if given.only else list(parts)
    if not torch.cuda.is_available():
        print("这台机器没有能用的 CUDA 显卡。有的话会依次做：", file=sys.stderr)
        for name, checks in (
            ("right", RIGHT),
            ("fast", FAST),
            ("beside", BESIDE),
            ("run", ["默认的一次训练、评估、二十首"]),
        ):
            print(f"  {name}：" + "、".join(checks), file=sys.stderr)
        return 2
    device = torch.device("cuda")
    versions = f"torch {torch.__version__}，CUDA {torch.version.cuda}，{sys.platform}"
    lines = [f"# {device_name(device)}", "", versions, ""]
    problems: list[str] = []
    for name in chosen:
        for line in parts[name]():
            lines.append(line)
            print(line, flush=True)
            problems += FAILURES
            FAILURES.clear()
            given.out.write_text("\n".join([*lines, "", *problems, ""]), encoding="utf-8")
    return 1 if problems else 0


FAILURES: list[str] = []


def row(name: str, measure: Callable[[], str]) -> str:
    """表里的一行；出错的写「错」，回溯留到报告末尾。"""
    began = time.monotonic()
    try:
        found = measure()
    except Exception as error:
        FAILURES.append(f"## {name}\n\n```text\n{traceback.format_exc()}```\n")
        found = f"错：{str(error).strip().splitlines()[0][:100] if str(error).strip() else type(error).__name__}"
    return f"| {name} | {found} | {time.monotonic() - began:.0f} |"


# ---- 对不对 ----


def right(device: str = "cuda") -> Iterator[str]:
    yield from ("## 对不对", "", "| 什么 | 结果 | 秒 |", "| --- | --- | --- |")
    for name, check in RIGHT.items():
        yield row(name, lambda check=check: check(device))
    yield ""


def build(config: ModelConfig, device: str, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    return GPT(config).to(device)


def batch(config: ModelConfig, rows: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(config.vocab_size, (rows, config.max_seq_len + 1), generator=generator)
    return ids[:, :-1].contiguous().to(device), ids[:, 1:].contiguous().to(device)


def gradients(model: GPT, x: torch.Tensor, y: torch.Tensor, runtime: Runtime, compiled: bool = False) -> Any:
    """(损失, 全部梯度拼成一个向量，在 CPU 上)。"""
    scaler = torch.amp.GradScaler(runtime.device.type, enabled=False)
    forward_backward = ForwardBackward(model, scaler, runtime, 0, y.numel(), len(x), compiled, print)
    loss = forward_backward(x, y, 0)
    if compiled and not forward_backward.compiled:
        raise AssertionError("没有编译成")
    return loss.item(), torch.cat([parameter.grad.flatten().float().cpu() for parameter in model.parameters()])


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    return ((found - expected).norm() / expected.norm()).item()


def compared(found: Any, expected: Any, most: float) -> str:
    loss = abs(found[0] - expected[0]) / expected[0]
    apart = distance(found[1], expected[1])
    if not (loss <= most and apart <= most):
        raise AssertionError(f"损失相差 {loss:.1e}，梯度相差 {apart:.1e}，限 {most:.0e}")
    return f"损失相差 {loss:.1e}，梯度相差 {apart:.1e}"


def step_against_cpu(device: str) -> str:
    """同样的权重与批次：CPU fp32 与显卡上的 fp32（不用 TF32）、混合精度。"""
    on_cpu = gradients(build(SMALL, "cpu"), *batch(SMALL, 8, "cpu"), Runtime(torch.device("cpu"), None, Processes()))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    told = []
    for dtype, most in ((None, 1e-4), (native_half(torch.device(device)), 3e-2)):
        runtime = Runtime(torch.device(device), dtype, Processes())
        found = gradients(build(SMALL, "cpu").to(device), *batch(SMALL, 8, device), runtime)
        told.append(f"{str(dtype).removeprefix('torch.') if dtype else 'fp32'}：{compared(found, on_cpu, most)}")
    torch.set_float32_matmul_precision(before)
    return "；".join(told)


def chunked_loss(device: str) -> str:
    runtime, data = Runtime(torch.device(device), None, Processes()), batch(SMALL, 8, device)
    whole = gradients(build(SMALL, device), *data, runtime)
    most, model_module.MOST_LOGITS = model_module.MOST_LOGITS, 300 * 100
    try:
        return compared(gradients(build(SMALL, device), *data, runtime), whole, 1e-4)
    finally:
        model_module.MOST_LOGITS = most


def compiled_step(device: str) -> str:
    runtime, data = Runtime(torch.device(device), None, Processes()), batch(SMALL, 8, device)
    plain = gradients(build(SMALL, device), *data, runtime)
    return compared(gradients(build(SMALL, device), *data, runtime, compiled=True), plain, 5e-3)


def skipped_on_device(device: str) -> str:
    """坏的一步：权重、优化器的状态一位不变；好的一步：变。"""
    model = build(SMALL, device)
    optimizers = build_optimizers("muon", model, 1e-3, 1e-3, 0.1)
    scaler = torch.amp.GradScaler(torch.device(device).type, enabled=False)

    def everything() -> list[torch.Tensor]:
        states = [state for optimizer in optimizers.values() for state in optimizer.state.values()]
        held = [value for state in states for value in state.values() if torch.is_tensor(value)]
        return [each.detach().clone() for each in (*model.parameters(), *held)]

    for broken in (False, True, False):
        before = everything()
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan if broken else 1e-3)
        update_unless(torch.tensor(broken, device=device), optimizers.values(), scaler)
        after = everything()
        same = [torch.equal(a, b) for a, b in zip(before, after, strict=False)]
        if len(before) == len(after) and all(same) != broken:
            raise AssertionError(f"坏步 {broken}，不变的 {sum(same)} / {len(same)}")
    return "坏步一位不变"


def scaled_fp16(device: str) -> str:
    """fp16 加梯度缩放：学一批，损失降到一半以下，没有 nan。"""
    model, (x, y) = build(SMALL, device), batch(SMALL, 8, device)
    runtime = Runtime(torch.device(device), torch.float16, Processes())
    scaler = torch.amp.GradScaler(runtime.device.type)
    optimizers = build_optimizers("muon", model, 3e-3, 2e-3, 0.0)
    forward_backward = ForwardBackward(model, scaler, runtime, 0, y.numel(), 8, False, print)
    losses = []
    for step in range(60):
        loss = forward_backward(x, y, step)
        for optimizer in optimizers.values():
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update_unless(~torch.stack([loss, norm]).isfinite().all(), optimizers.values(), scaler)
        model.zero_grad(set_to_none=True)
        losses.append(loss.item())
    if not losses[-1] < losses[0] / 2:
        raise AssertionError(f"60 步：{losses[0]:.2f} → {losses[-1]:.2f}")
    return f"60 步：{losses[0]:.2f} → {losses[-1]:.2f}，放大 {scaler.get_scale():.0f} 倍"


def graph_against_eager(device: str) -> str:
    """贪心 500 个词元（超过上下文，重新算起）与八首先后写完的，录好的与逐个启动的相同。"""
    model = build(SMALL, device).eval().requires_grad_(False)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.3)
    told = []
    for songs, stop, sampling in ((1, -1, Sampling(max_tokens=500, temperature=0)), (8, 7, Sampling(max_tokens=60))):
        ways = [{"make_step": TorchStep}, {"make_step": RecordedStep, "draw": RecordedDraw()}]
        written = [list(generate(model, [1, 5], sampling, stop, num_samples=songs, **way)) for way in ways]
        if written[0] != written[1]:
            first = next(place for place, pair in enumerate(zip(*written, strict=False)) if pair[0] != pair[1])
            raise AssertionError(f"{songs} 首，第 {first} 步起不同")
        told.append(f"{songs} 首 {sum(map(len, written[0]))} 个词元相同")
    return "，".join(told)


# 另一个进程里的训练：可以限住显存，可以走到某一步就像按了 Ctrl-C
LAUNCH = """
import os, signal, sys, torch, train
cap, stop = float(sys.argv[1]), int(sys.argv[2])
if cap:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, cap * 2**30 / total))
step = train.Trainer.step
def stopping(self):
    step(self)
    if self.progress.iteration == stop:
        os.kill(os.getpid(), signal.SIGINT)
train.Trainer.step = stopping
sys.exit(train.main(sys.argv[3:]))
"""


def train(folder: Path, *arguments: object, cap: float = 0, stop: int = 0) -> tuple[int, str, list[dict[str, Any]]]:
    """train.py：（退出码，输出，metrics）。cap：最多用这么多 GB 显存；stop：走完这一步按 Ctrl-C。"""
    common = ["--use_swanlab", "false", "--fit_to_corpus", "false", "--patience", "none", "--checkpoint_dir", folder]
    common += ["--cache_dir", folder.parent / "cache", "--bpe_model_prefix", folder.parent / "bpe"]
    command = [sys.executable, "-c", LAUNCH, *map(str, [cap, stop, *common, *arguments])]
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    metrics = folder / "metrics.jsonl"
    rows = [json.loads(text) for text in metrics.read_text().splitlines()] if metrics.exists() else []
    return made.returncode, made.stdout + made.stderr, rows


TINY_RUN = ["--n_layers", 2, "--n_heads", 4, "--n_embed", 128, "--max_seq_len", 128, "--batch_size", 8]
TINY_RUN += ["--eval_interval", 10, "--eval_iters", 2, "--save_interval", 10, "--log_interval", 1]
TINY_RUN += ["--use_compile", "false", "--warmup_iters", 2]


def resumed(device: str) -> str:
    """一口气 20 步，与 10 步停下再接 10 步：权重与损失。"""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        options = ["--device", device, *TINY_RUN]
        for folder, stop, expected in (("whole", 0, 0), ("parts", 10, 130), ("parts", 0, 0)):
            code, output, _ = train(place / folder, *options, "--train_iters", 20, stop=stop)
            if code != expected:
                raise AssertionError(output[-300:])
        whole, parts = (
            torch.load(place / folder / "latest.pt", map_location="cpu", weights_only=True)["model"]
            for folder in ("whole", "parts")
        )
        apart = max((whole[key] - parts[key]).abs().max().item() for key in whole)
        if apart > 1e-2:
            raise AssertionError(f"权重最多相差 {apart:.1e}")
        return "逐位相同" if apart == 0 else f"权重最多相差 {apart:.1e}（显卡上的加法不定次序）"


def out_of_memory(device: str) -> str:
    """写明的微批次装不下：减半，照常训完。"""
    with tempfile.TemporaryDirectory() as name:
        big = ["--batch_size", 64, "--micro_batch_size", 64, "--train_iters", 2, "--eval_iters", 1]
        code, output, rows = train(Path(name) / "run", "--use_compile", "false", "--log_interval", 1, *big, cap=8)
        if code or "微批次减为" not in output or not rows:
            raise AssertionError(output[-300:])
        sizes = [line for line in output.splitlines() if "微批次减为" in line]
        return f"8 GB：减了 {len(sizes)} 次，{sizes[-1].split('，')[0]}"


def two_cards(device: str) -> str:
    if torch.cuda.device_count() < 2:
        return "未测量：只有一块卡"
    with tempfile.TemporaryDirectory() as name:
        command = ["torchrun", "--nproc_per_node", "2", "train.py", "--use_swanlab", "false", "--train_iters", "10"]
        command += ["--checkpoint_dir", f"{name}/run", "--cache_dir", f"{name}/cache", "--bpe_model_prefix"]
        command += [f"{name}/bpe", *map(str, TINY_RUN)]
        made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
        if made.returncode:
            raise AssertionError(made.stderr[-300:])
        return "两块卡，10 步"


RIGHT: dict[str, Callable[[str], str]] = {
    "一步，与 CPU fp32": step_against_cpu,
    "损失分块": chunked_loss,
    "编译与否": compiled_step,
    "坏步由设备跳过": skipped_on_device,
    "fp16 加梯度缩放": scaled_fp16,
    "CUDA 图与逐个启动": graph_against_eager,
    "停下接着训": resumed,
    "显存不足": out_of_memory,
    "torchrun": two_cards,
}


# ---- 快不快 ----


def fast() -> Iterator[str]:
    yield from ("## 训练", "", "| 一步 | 毫秒 · 词元/秒 · MFU · 显存峰值 | 秒 |", "| --- | --- | --- |")
    for rows, length in SHAPES:
        for compiled, optimizer in ((True, "muon"), (False, "muon"), (True, "adamw")):
            name = f"{rows} × {length}，{'编译' if compiled else '逐步执行'}，{optimizer}"
            yield row(name, lambda given=(rows, length, compiled, optimizer): training(*given))
    for cap in CAPS:
        yield row(f"只给 {cap} GB，默认的配置", lambda cap=cap: capped(cap))
    yield from ("", "## 写歌", "", "| 什么 | 词元/秒：CUDA 图 · 逐个启动 | 秒 |", "| --- | --- | --- |")
    for songs in (1, 64):
        yield row(f"{songs} 首，85M，bf16", lambda songs=songs: writing(songs))
    yield ""


def training(rows: int, length: int, compiled: bool, optimizer: str) -> str:
    """train.py 的一步：微批次随显存定，随机的词元。"""
    torch._dynamo.reset()  # 上一行编译好的还拿着它的模型
    torch.cuda.empty_cache()
    runtime = setup("cuda", True, 0, Processes())
    model = build(ModelConfig(10000, length, 12, 12, 768, dropout=0.1), "cuda").train()
    shape = ["--batch_size", str(rows), "--max_seq_len", str(length), "--optimizer", optimizer]
    config = flags.resolve(shape, "gpu")
    micro = first_micro_batch(model, config, runtime, rows, free_bytes(runtime.device))
    optimizers = build_optimizers(optimizer, model, 3e-4, 2e-3, 0.1)
    average, scaler = WeightAverage(model, 100), torch.amp.GradScaler("cuda", enabled=runtime.needs_scaler)
    forward_backward = ForwardBackward(model, scaler, runtime, 0, rows * length, micro, compiled, print)
    x, y = (part.pin_memory() for part in batch(model.config, rows, "cpu"))

    def step(number: int) -> None:
        loss = forward_backward(x.to("cuda", non_blocking=True), y.to("cuda", non_blocking=True), number)
        for each in optimizers.values():
            scaler.unscale_(each)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        update_unless(~torch.stack([loss, norm]).isfinite().all(), optimizers.values(), scaler)
        model.zero_grad(set_to_none=True)
        average.update(number + 1)

    for number in range(3):
        step(number)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for number in range(3, 3 + STEPS):
        step(number)
    torch.cuda.synchronize()
    seconds = (time.perf_counter() - began) / STEPS
    speed, peak = rows * length / seconds, peak_flops(torch.device("cuda"))
    share = f"{speed * model.flops_per_token() / peak:.1%}" if peak else "–"
    memory = torch.cuda.max_memory_allocated() / 2**30
    return f"{seconds * 1e3:.1f} · {speed:,.0f} · {share} · {memory:.1f} GiB（微批次 {micro}）"


def capped(gigabytes: int) -> str:
    with tempfile.TemporaryDirectory() as name:
        options = ["--train_iters", 6, "--log_interval", 1, "--eval_iters", 1, "--generate_tokens", 1]
        code, output, rows = train(Path(name) / "run", *options, cap=gigabytes)
        if code:
            raise AssertionError(output[-300:])
        steps = [each for each in rows if "train_loss" in each]
        first = next((line for line in output.splitlines() if line.startswith("显存：")), "")
        again = output.count("微批次减为")
        speed = statistics.median(each["tokens_per_s"] for each in steps[1:])
        found = f"实际 {steps[-1]['peak_memory_gb']:.1f} GiB，减半 {again} 次，{speed:,.0f} 词元/秒"
        return f"{first.removeprefix('显存：')}；{found}"


def writing(songs: int) -> str:
    torch.backends.cuda.enable_cudnn_sdp(False)
    model = build(ModelConfig(10000, 1024, 12, 12, 768), "cuda").eval().requires_grad_(False).bfloat16()
    rates = []
    for way in ({"make_step": RecordedStep, "draw": RecordedDraw()}, {"make_step": TorchStep}):
        measured = []
        for _ in range(3):
            began = time.perf_counter()
            for _ in generate(model, [1, 5], Sampling(max_tokens=TOKENS), -1, num_samples=songs, **way):
                pass
            measured.append(songs * TOKENS / (time.perf_counter() - began))
        rates.append(statistics.median(measured[1:]))
    return f"{rates[0]:,.0f} · {rates[1]:,.0f}"


FAST = [
    "一步的毫秒、MFU、显存（三种形状，编译与否，两种优化器）",
    "只给 24、16、12、8 GB 各自启动",
    "写歌，有无 CUDA 图",
]


# ---- 旁边是别的程序 ----

BESIDE = ["benchmark.py 的全表：训练与写歌，装了 transformers 时旁边是它的"]


def beside() -> Iterator[str]:
    yield from ("## benchmark.py", "")
    command = [sys.executable, "benchmark.py", "--device", "cuda", "--rounds", "3"]
    made = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if made.returncode:
        FAILURES.append(f"## benchmark.py\n\n```text\n{made.stderr[-3000:]}\n```\n")
    yield from (made.stdout.strip(), "")


# ---- 默认的一次训练 ----


def run(lyrics_dir: Path, steps: int) -> Iterator[str]:
    yield from (f"## 默认的一次训练（{steps:,} 步）", "")
    folder = Path(os.environ.get("GPU_RUN_DIR") or tempfile.mkdtemp()) / "run"
    began = time.monotonic()
    code, output, rows = train(folder, "--lyrics_dir", lyrics_dir, "--train_iters", steps)
    minutes = (time.monotonic() - began) / 60
    if code:
        FAILURES.append(f"## 默认的一次训练\n\n```text\n{output[-3000:]}\n```\n")
        return
    curve = [each for each in rows if "val_bpc" in each]
    logs = [each for each in rows if "train_loss" in each]
    speed = statistics.median(each["tokens_per_s"] for each in logs[1:])
    yield f"从命令到结束 {minutes:.1f} 分钟，{speed:,.0f} 词元/秒，显存峰值 {logs[-1]['peak_memory_gb']:.1f} GiB。"
    yield from ("", "| 步 | 验证，比特/字 | 这一段的训练损失 |", "| --- | --- | --- |")
    before = 0
    for each in curve:
        part = [log["train_loss"] for log in logs if before < log["iter"] <= each["iter"] and log["train_loss"]]
        yield f"| {each['iter']} | {each['val_bpc']:.3f} | {statistics.mean(part) if part else float('nan'):.3f} |"
        before = each["iter"]
    for title, command in (
        ("evaluate.py", ["evaluate.py", "--checkpoint", folder / "best.pt", "--lyrics_dir", lyrics_dir]),
        ("二十首", ["inference.py", "--checkpoint", folder / "best.pt", "--prompt", "今夜我", "--num_samples", 20]),
    ):
        made = subprocess.run([sys.executable, *map(str, command)], cwd=REPOSITORY, capture_output=True, text=True)
        yield from ("", f"### {title}", "", "```text", (made.stdout or made.stderr).strip(), "```")


if __name__ == "__main__":
    raise SystemExit(main())
