"""测速：`python benchmark.py`。每项都在同一次运行里交替测两边，取中位数之比。

第一项：写歌时用 KV 缓存，与每个词元重算前文相比（nanoGPT 的做法）。
"""

import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import config as configuration
import generation
import runtime
from config import Flag, UserError
from model import GPT, KVCache, ModelConfig

DESCRIPTION = "测速；结果是比值与中位数。模型为默认大小（85M）、随机权重：速度与权重的值无关。"
FLAGS = [
    Flag("max_tokens", 500, configuration.whole(2), "写多少个词元"),
    Flag("rounds", 3, configuration.whole(1), "测几轮，取中位数"),
    Flag("stride", 10, configuration.whole(1), "每写多少个词元换到重算一边测一次"),
    Flag("dtype", "fp32", configuration.one_of("fp32", "bf16", "fp16"), "权重类型"),
    Flag("device", "auto", configuration.text(), "auto、cpu、cuda、mps"),
    Flag("json", None, configuration.path(optional=True), "把结果另存为 JSON 文件"),
]
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
PROMPT_TOKENS = 8


def main(argv: Sequence[str]) -> int:
    given = configuration.parse_flags(FLAGS, argv, "benchmark.py", DESCRIPTION)
    options = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    device = runtime.pick_device(options["device"])
    torch.manual_seed(0)
    model = default_model().to(device, DTYPES[options["dtype"]]).eval()
    machine = f"{runtime.device_name(device)} · {options['dtype']} · torch {torch.__version__} · {platform.platform()}"
    print(f"机器：{machine}", flush=True)

    result = cached_decode_against_recompute(model, options["max_tokens"], options["rounds"], options["stride"])
    print_table(result)
    if options["json"] is not None:
        contents = {"machine": machine, "results": [result]}
        Path(options["json"]).write_text(json.dumps(contents, ensure_ascii=False, indent=1), encoding="utf-8")
    return 0


def default_model() -> GPT:
    """config.py 常量所定的模型，随机权重。"""
    c = configuration
    config = ModelConfig(c.BPE_VOCAB_SIZE, c.MAX_SEQ_LEN, c.N_LAYERS, c.N_HEADS, c.N_EMBED)
    return GPT(config).requires_grad_(False)


@torch.inference_mode()
def cached_decode_against_recompute(model: GPT, tokens: int, rounds: int, stride: int) -> dict[str, Any]:
    """写 tokens 个词元：KV 缓存与重算前文的词元/秒。

    每写 stride 个词元换一边，机器忙闲的变化就落在两边头上。重算一边的单步用时随前文平滑增长，
    每段在中间的位置测一次，代表这一段。
    """
    if PROMPT_TOKENS + tokens > model.config.max_seq_len:
        longest = model.config.max_seq_len - PROMPT_TOKENS
        raise UserError(f"--max_tokens {tokens}：上下文 {model.config.max_seq_len} 里最多测 {longest}")
    weight = model.embedding.weight
    ids = torch.randint(model.config.vocab_size, (1, PROMPT_TOKENS + tokens), device=weight.device)
    measured: dict[str, list[float]] = {"KV 缓存": [], "重算前文": []}
    generation.prefill(model, ids, KVCache(model.config, 1, ids.size(1), weight.device, weight.dtype))  # 预热
    for number in range(rounds):
        cache = KVCache(model.config, 1, PROMPT_TOKENS + tokens, weight.device, weight.dtype)
        cached = _timed(lambda cache=cache: generation.prefill(model, ids[:, :PROMPT_TOKENS], cache))
        recomputed = 0.0
        for first in range(PROMPT_TOKENS, PROMPT_TOKENS + tokens, stride):
            positions = range(first, min(first + stride, PROMPT_TOKENS + tokens))
            for position in positions:
                token = ids[:, position]
                cached += _timed(lambda token=token, cache=cache: generation.decode_one(model, token, cache))
            context = ids[:, : positions[len(positions) // 2]]
            recomputed += len(positions) * _timed(lambda context=context: model.logits(model.hidden(context)[:, -1]))
        for name, seconds in (("KV 缓存", cached), ("重算前文", recomputed)):
            measured[name].append(tokens / seconds)
            print(f"  第 {number + 1} 轮 {name}：{tokens / seconds:.1f}", file=sys.stderr, flush=True)
    medians = {name: statistics.median(values) for name, values in measured.items()}
    return {
        "name": f"写 {tokens} 个词元",
        "unit": "词元/秒",
        "measured": measured,
        "medians": medians,
        "ratio": medians["KV 缓存"] / medians["重算前文"],
    }


def _timed(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
    return time.perf_counter() - began


def print_table(result: dict[str, Any]) -> None:
    print(f"\n{result['name']}（{result['unit']}，中位数）")
    for name, median in result["medians"].items():
        spread = f"{min(result['measured'][name]):.1f} – {max(result['measured'][name]):.1f}"
        print(f"  {name}：{median:.1f}（{spread}）")
    print(f"  比值：{result['ratio']:.1f} 倍")


if __name__ == "__main__":
    configuration.run_script(main, UserError, runtime.DeviceError)
