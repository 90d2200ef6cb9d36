"""测速：`python benchmark.py`，十来分钟打印一张表；`--quick` 两分钟。

每行比较两边，在同一次运行里交替测，取中位数之比；机器忙闲的变化就落在两边头上。装了 transformers 时，
另一边是同样权重的 GPT-NeoX；没装就只报自己的速度。装了 ctranslate2、llama-cpp-python（连同 gguf），写一首歌也与它们比。
"""

import contextlib
import importlib.util
import json
import multiprocessing
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

import config as configuration
import generation
import lyrics
import model as model_module
import runtime
from config import Flag, UserError
from corpus.tokens import Batches
from gguf_file import write_gguf
from model import GPT, WRITING_DTYPES, ModelConfig, prepare_for_writing
from optimizer import build_optimizers

DESCRIPTION = "测速；结果是中位数与比值。写歌用默认大小（85M）的模型、随机权重、贪心：速度与权重的值无关。"
FLAGS = [
    Flag("max_tokens", 200, configuration.whole(2), "写多少个词元"),
    Flag("rounds", 5, configuration.whole(1), "测几轮，取中位数"),
    Flag("songs", 32, configuration.whole(2), "成批写歌时几首一批"),
    Flag("quick", False, configuration.BOOLEAN, "只测一轮，每项少写些，训练不编译"),
    Flag("only", "all", configuration.one_of("all", "writing", "training"), "只测写歌或训练"),
    Flag("dtype", "all", configuration.one_of("all", *WRITING_DTYPES), "精度；all 是这台机器上有用的几种"),
    Flag("device", "auto", configuration.text(), "auto、cpu、cuda、mps"),
    Flag("json", None, configuration.path(optional=True), "把结果另存为 JSON 文件"),
]
PROMPT_TOKENS = 8
PREFILL_TOKENS = 512
TRAINING_STEPS = 3  # 每轮训练几步
FORM = 8, 7  # 句式：几行，每行几个字
CANDIDATES = 8
CTRANSLATE2_TYPES = {"fp32": "float32", "int8": "int8"}  # 在 CPU 上有的
LLAMA_TYPES = {"fp32": "fp32", "bf16": "fp16", "int8": "q8_0"}
PAUSE = 0.5  # 秒；别的引擎的线程算完还要空转一阵，等它们停了再换边
STRIDE = 10  # 每写这么多个词元，换到重算前文的一边测一次
PEER = "transformers"
SHAPES = {  # 训练：层数、头数、维度、每步几个序列、长度
    "cpu 预设": (4, 4, 256, 8, 256),
    "14.6M": (6, 6, 384, 8, 256),
}


def main(argv: Sequence[str]) -> int:
    given = configuration.parse_flags(FLAGS, argv, "benchmark.py", DESCRIPTION)
    options = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    if options["quick"]:
        options |= {"max_tokens": min(options["max_tokens"], 40), "rounds": 1}
    if PROMPT_TOKENS + options["max_tokens"] > configuration.MAX_SEQ_LEN:
        longest = configuration.MAX_SEQ_LEN - PROMPT_TOKENS
        raise UserError(f"--max_tokens {options['max_tokens']}：上下文 {configuration.MAX_SEQ_LEN} 里最多测 {longest}")
    device = runtime.pick_device(options["device"])
    machine = f"{runtime.device_name(device)} · torch {torch.__version__} · {platform.platform()}"
    print(f"机器：{machine}", flush=True)
    results = []
    if options["only"] != "writing":  # 先测：Linux 上子进程的内存峰值从父进程当时的占用算起
        results += measure_training(device, options)
    if options["only"] != "training":
        results += measure_writing(device, options)
    print_table(results)
    if options["json"] is not None:
        contents = {"machine": machine, "options": {**options, "json": None}, "results": results}
        Path(options["json"]).write_text(json.dumps(contents, ensure_ascii=False, indent=1), encoding="utf-8")
    return 0


def measure_writing(device: torch.device, options: dict[str, Any]) -> list[dict[str, Any]]:
    tokens, rounds = options["max_tokens"], options["rounds"]
    dtypes = [options["dtype"]]
    if options["dtype"] == "all":
        dtypes = ["fp32", "bf16", "int8"] if device.type == "cpu" else ["fp32", "bf16"]
    bandwidth = memory_bandwidth(device)
    results = []
    for dtype in dtypes:
        model = prepare_for_writing(default_model().to(device), dtype)
        peer, peer_dtype = None, "fp32" if dtype == "int8" else dtype
        if importlib.util.find_spec("transformers") is not None:
            peer = as_neox(default_model()).to(device, WRITING_DTYPES[peer_dtype])
        row = decode(model, peer, tokens, rounds) | {"dtype": dtype, "peer_dtype": peer_dtype}
        weight_bytes = sum(default_model_counts()) * (1 if dtype == "int8" else WRITING_DTYPES[dtype].itemsize)
        row["of_bandwidth"] = statistics.median(row["ours"]) * weight_bytes / bandwidth
        results += [
            row,
            *other_engines(model, dtype, tokens, rounds),
            prefill(model, peer, rounds) | {"dtype": dtype, "peer_dtype": peer_dtype},
        ]
        if device.type == "cuda":
            results.append(graphed(model, tokens, rounds) | {"dtype": dtype})
        results.append(batch(model, options["songs"], min(tokens, 60), rounds) | {"dtype": dtype})
        results += [row | {"dtype": dtype} for row in formed(model, rounds)]
        if dtype == dtypes[0]:
            results.append(cached_against_recomputed(model, tokens, rounds) | {"dtype": dtype})
    return results


def measure_training(device: torch.device, options: dict[str, Any]) -> list[dict[str, Any]]:
    quick = options["quick"]
    results = [*loss_memory(8 if quick else 16), data_path(options["rounds"])]
    return results + [training(name, device, options["rounds"], compiled=not quick) for name in SHAPES]


def random_model(config: ModelConfig) -> GPT:
    """随机权重（每次相同）的模型。"""
    torch.manual_seed(0)
    return GPT(config).requires_grad_(False)


def default_model() -> GPT:
    """config.py 常量所定的模型，随机权重。"""
    c = configuration
    return random_model(ModelConfig(c.BPE_VOCAB_SIZE, c.MAX_SEQ_LEN, c.N_LAYERS, c.N_HEADS, c.N_EMBED))


def default_model_counts() -> tuple[int, int]:
    with torch.device("meta"):
        return default_model().parameter_counts()


def as_neox(model: GPT) -> Any:
    """同样权重的 transformers GPT-NeoX：顺序残差、rotary_pct=1、erf GELU、共用输出层。"""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    neox = GPTNeoXForCausalLM(GPTNeoXConfig(**model_module.neox_config(model.config))).eval()
    missing, unexpected = neox.load_state_dict(model_module.neox_state(model), strict=False)
    head = {"embed_out.weight", "lm_head.weight"}  # 各版本的叫法；与词嵌入共用
    if not set(missing) <= head or not set(unexpected) <= head:
        raise RuntimeError(f"权重名与 GPT-NeoX 的不符：缺 {missing}，多 {unexpected}")
    neox.tie_weights()
    return neox


def memory_bandwidth(device: torch.device) -> float:
    """从内存顺序读一遍的速度（字节/秒），取五次里最快的。"""
    numbers = torch.ones(2**26, device=device)
    return max(numbers.nbytes / timed(numbers.sum) for _ in range(5))


# ---------------------------------------------------------------------------
# 各项：返回一行，ours 与 peer 是每轮的词元/秒
# ---------------------------------------------------------------------------


def decode(model: GPT, peer: Any, tokens: int, rounds: int) -> dict[str, Any]:
    """一首歌，逐个词元。"""
    ids = prompt_ids(model, PROMPT_TOKENS)

    def by_peer(count: int) -> None:
        peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False, pad_token_id=0)

    return alternate(
        f"写 {tokens} 个词元",
        tokens,
        rounds,
        lambda: write(model, ids[0].tolist(), tokens),
        None if peer is None else lambda: by_peer(tokens),
        PEER,
    )


def other_engines(model: GPT, dtype: str, tokens: int, rounds: int) -> list[dict[str, Any]]:
    """一首歌，与装了的别的推理引擎相比：同样的权重与线程数，都在 CPU 上。

    它们在自己的进程里：同一个进程里有两套 OpenMP，两边都会慢四成。
    """
    if model.embedding.weight.device.type != "cpu":
        return []
    engines = [  # 要装的软件包、各精度的叫法、怎样备好；第一个包的名字写进表里
        (("ctranslate2",), CTRANSLATE2_TYPES, by_ctranslate2),
        (("llama_cpp", "gguf"), LLAMA_TYPES, by_llama),
    ]
    prompt = prompt_ids(model, PROMPT_TOKENS)[0].tolist()
    found = []
    for packages, types, build in engines:
        if dtype not in types or any(importlib.util.find_spec(package) is None for package in packages):
            continue
        options = build, model.config, types[dtype], PROMPT_TOKENS + tokens
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _prepare_engine, options) as executor:
            row = alternate(
                f"写 {tokens} 个词元",
                tokens,
                rounds,
                lambda: write(model, prompt, tokens),
                lambda executor=executor: executor.submit(_write_by_engine, prompt, tokens).result(),
                packages[0],
                PAUSE,
            )
        found.append(row | {"dtype": dtype, "peer_dtype": types[dtype]})
    return found


def _prepare_engine(build: Callable[..., Any], config: ModelConfig, kind: str, capacity: int) -> None:
    """在测速的进程里备好引擎，权重与 `random_model` 的相同。"""
    global _engine
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        _engine = build(random_model(config), kind, Path(folder), capacity)


def _write_by_engine(prompt: list[int], tokens: int) -> list[int]:
    return _engine(prompt, tokens)


Engine = Callable[[list[int], int], list[int]]  # (前文词元, 写几个) → 写出的词元


def by_ctranslate2(model: GPT, kind: str, folder: Path, capacity: int) -> Engine:
    import ctranslate2
    from ctranslate2.specs import TransformerDecoderModelSpec, common_spec

    c = model.config
    spec = TransformerDecoderModelSpec.from_config(
        c.n_layers,
        c.n_heads,
        activation=common_spec.Activation.GELU,
        rotary_dim=c.head_dim,
        rotary_interleave=False,
        rotary_base=c.rope_base,
    )

    def fill(to: Any, module: torch.nn.Module, weight: str = "weight", bias: str = "bias") -> None:
        setattr(to, weight, module.weight.numpy())
        setattr(to, bias, module.bias.numpy())

    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = model.embedding.weight.numpy()
    fill(decoder.layer_norm, model.norm, "gamma", "beta")
    for layer, block in zip(decoder.layer, model.blocks, strict=True):
        fill(layer.self_attention.layer_norm, block.norm_1, "gamma", "beta")
        fill(layer.self_attention.linear[0], block.attention.qkv)
        fill(layer.self_attention.linear[1], block.attention.proj)
        fill(layer.ffn.layer_norm, block.norm_2, "gamma", "beta")
        fill(layer.ffn.linear_0, block.feed_forward.fc)
        fill(layer.ffn.linear_1, block.feed_forward.proj)
    spec.register_vocabulary([str(number) for number in range(c.vocab_size)])
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.config.layer_norm_epsilon = c.layer_norm_eps
    spec.validate()
    spec.optimize(kind)
    spec.save(str(folder))
    generator = ctranslate2.Generator(str(folder), compute_type=kind, intra_threads=torch.get_num_threads())

    def run(prompt: list[int], count: int) -> list[int]:
        limits = {"max_length": count, "min_length": count, "end_token": [], "include_prompt_in_result": False}
        return generator.generate_batch([[str(number) for number in prompt]], **limits)[0].sequences_ids[0]

    return run


def by_llama(model: GPT, kind: str, folder: Path, capacity: int) -> Engine:
    import llama_cpp

    path = folder / "model.gguf"
    write_gguf(path, model, None, 0, kind)
    threads = torch.get_num_threads()
    llama = llama_cpp.Llama(str(path), n_ctx=capacity, n_threads=threads, n_threads_batch=threads, verbose=False)

    def run(prompt: list[int], count: int) -> list[int]:
        llama.reset()
        steps = llama.generate(prompt, temp=0.0, top_k=1, repeat_penalty=1.0)
        return [token for token, _ in zip(steps, range(count), strict=False)]

    return run


@torch.inference_mode()
def prefill(model: GPT, peer: Any, rounds: int) -> dict[str, Any]:
    """读一段长的开头，到第一个词元的 logits。"""
    length = min(PREFILL_TOKENS, model.config.max_seq_len)
    ids = prompt_ids(model, length)
    return alternate(
        f"读 {length} 个词元的开头",
        length,
        rounds,
        lambda: generation.prefill(model, ids, model.new_cache(1, length)),
        None if peer is None else lambda: peer(ids, use_cache=True, logits_to_keep=1),
        PEER,
    )


def graphed(model: GPT, tokens: int, rounds: int) -> dict[str, Any]:
    """一首歌，重放 CUDA 图与逐个启动内核相比；录图的时间算在内。"""
    prompt = prompt_ids(model, PROMPT_TOKENS)[0].tolist()
    name = f"写 {tokens} 个词元，CUDA 图"
    with_graph, without = (lambda use=use: write(model, prompt, tokens, cuda_graph=use) for use in (True, False))
    return alternate(name, tokens, rounds, with_graph, without, "逐个启动")


def batch(model: GPT, songs: int, tokens: int, rounds: int) -> dict[str, Any]:
    """一批里的几首，与一首接一首相比（后者只写两首，速度相同）。"""
    prompt = prompt_ids(model, PROMPT_TOKENS)[0].tolist()
    row = alternate(
        f"一批写 {songs} 首",
        songs * tokens,
        rounds,
        lambda: write(model, prompt, tokens, songs),
        lambda: [write(model, prompt, tokens) for _ in range(2)],
        "一首接一首",
    )
    return row | {"peer": [rate * 2 / songs for rate in row["peer"]]}


def formed(model: GPT, rounds: int) -> list[dict[str, Any]]:
    """守行长与韵式写一首，与自由写同样多的词元相比；每行几稿取一，与一稿相比。"""
    prompt = prompt_ids(model, PROMPT_TOKENS)[0].tolist()
    lines, characters = FORM
    tokens = lines * (characters + 1)
    vocabulary = single_characters(model.config.vocab_size)
    form = lyrics.make_form(lines, str(characters), "auto", "AABA", "", None)
    sampling = generation.Sampling(max_tokens=tokens)

    def compose(candidates: int) -> None:
        plan = lyrics.SongPlan(form, vocabulary, lambda text: [])
        ends = [vocabulary.newline_id, vocabulary.eos_id]
        list(plan.write(generation.Composer(model, prompt, sampling, ends, candidates=candidates)))

    def freely() -> None:
        for _ in generation.generate(model, prompt, sampling, stop_id=-1):
            pass

    name = f"守句式写 {lines} 行 × {characters} 字"
    return [
        alternate(name, tokens, rounds, lambda: compose(1), freely, "自由写"),
        alternate(
            f"{name}，每行 {CANDIDATES} 稿", tokens, rounds, lambda: compose(CANDIDATES), lambda: compose(1), "1 稿"
        ),
    ]


def single_characters(vocab_size: int) -> lyrics.Vocabulary:
    """只有单字的词表：随机权重的模型写出的每个词元都是一个字。"""
    characters = [chr(0x4E00 + number).encode() for number in range(vocab_size - 2)]
    return lyrics.Vocabulary([b"", b"\n", *characters], newline_id=1, eos_id=0)


@torch.inference_mode()
def cached_against_recomputed(model: GPT, tokens: int, rounds: int) -> dict[str, Any]:
    """KV 缓存，与每个词元重算前文（nanoGPT 的做法）相比。

    重算的单步用时随前文平滑增长，每 STRIDE 个词元在中间的位置测一次，代表这一段。
    """
    ids = prompt_ids(model, PROMPT_TOKENS + tokens)
    ours, peer = [], []
    for _ in range(rounds):
        cache = model.new_cache(1, ids.size(1))
        cached = timed(lambda cache=cache: generation.prefill(model, ids[:, :PROMPT_TOKENS], cache))
        recomputed = 0.0
        for first in range(PROMPT_TOKENS, ids.size(1), STRIDE):
            positions = range(first, min(first + STRIDE, ids.size(1)))
            for position in positions:
                token = ids[:, position]
                cached += timed(lambda token=token, cache=cache: generation.decode_one(model, token, cache))
            context = ids[:, : positions[len(positions) // 2]]
            recomputed += len(positions) * timed(lambda context=context: model.logits(model.hidden(context)[:, -1]))
        ours.append(tokens / cached)
        peer.append(tokens / recomputed)
    return {"name": f"写 {tokens} 个词元，KV 缓存", "peer_name": "重算前文", "ours": ours, "peer": peer}


def training(name: str, device: torch.device, rounds: int, compiled: bool) -> dict[str, Any]:
    """一个优化步：前向、反向、裁剪、AdamW；混合精度，都不丢弃。

    两边各在自己的进程里，轮流走 TRAINING_STEPS 步：我们的进程照 train.py 设置内存分配，另一边是平常的循环。
    """
    kind = runtime.native_half(device)
    dtype = next((key for key, value in WRITING_DTYPES.items() if value == kind), "fp32")
    with contextlib.ExitStack() as held:

        def side(build: Callable[..., Any]) -> Callable[[], Any]:
            spawn = multiprocessing.get_context("spawn")
            options = build, SHAPES[name], device.type, compiled
            executor = held.enter_context(ProcessPoolExecutor(1, spawn, _prepare_steps, options))
            return lambda: executor.submit(_take_steps).result()

        peer = side(_peer_step) if importlib.util.find_spec("transformers") is not None else None
        tokens = TRAINING_STEPS * SHAPES[name][3] * SHAPES[name][4]
        row = alternate(f"训练一步，{name}", tokens, rounds, side(_our_step), peer, PEER)
    return row | {"dtype": dtype, "peer_dtype": dtype}


def _prepare_steps(build: Callable[..., Any], shape: tuple[int, ...], device_type: str, compiled: bool) -> None:
    """在测速的进程里备好模型与批次。"""
    global _step
    device = torch.device(device_type)
    layers, heads, width, rows, length = shape
    torch.manual_seed(0)
    model = GPT(ModelConfig(configuration.BPE_VOCAB_SIZE, length, layers, heads, width)).to(device).train()
    ids = torch.randint(model.config.vocab_size, (rows, length + 1), device=device)
    wrap = (lambda call: torch.compile(call, dynamic=False)) if compiled else (lambda call: call)
    loss, module, optimizer = build(model, ids, wrap)
    kind = runtime.native_half(device)

    def step() -> None:
        with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), configuration.GRAD_CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    _step = step


def _our_step(model: GPT, ids: torch.Tensor, wrap: Callable[[Any], Any]) -> tuple:
    if ids.device.type == "cpu":
        runtime.setup("cpu", True, 0, runtime.Processes())
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    loss = wrap(model.loss)
    return lambda: loss(x, y) / y.numel(), model, build_optimizers("adamw", model, 1e-4, 1e-4, 0.1)["adamw"]


def _peer_step(model: GPT, ids: torch.Tensor, wrap: Callable[[Any], Any]) -> tuple:
    """平常的写法：labels 由模型自己右移，AdamW 取默认。"""
    neox = as_neox(model).to(ids.device).train()
    forward, x = wrap(neox), ids[:, :-1].contiguous()
    optimizer = torch.optim.AdamW(neox.parameters(), lr=1e-4, weight_decay=0.1)
    return lambda: forward(input_ids=x, labels=x).loss, neox, optimizer


def _take_steps() -> None:
    timed(lambda: [_step() for _ in range(TRAINING_STEPS)])


def loss_memory(rows: int) -> list[dict[str, Any]]:
    """从最后的隐藏状态算 rows × 1024 个词元的损失与梯度，内存的峰值（GB）：分块算，与一次展开全部 logits 相比。

    每个数都在新的进程里测，减去算之前的占用。
    """
    if runtime.peak_memory_gb(torch.device("cpu")) is None:
        return []
    found = []
    for kind in ("parts", "whole", "native"):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            found.append(executor.submit(_peak_of_loss, kind, rows).result())
    ours, plain, native = found
    row = {"name": f"损失的内存（GB），{rows} × 1024", "dtype": "fp32", "ours": [ours]}
    found = [row | {"peer_name": "一次展开", "peer": [plain]}]
    if native:
        found.append(row | {"peer_name": "F.linear_cross_entropy", "peer": [native]})
    return found


def _peak_of_loss(kind: str, rows: int) -> float:
    """在这个进程里算一次，返回内存峰值比之前多了多少 GB；没有 F.linear_cross_entropy 时为 0。"""
    c = configuration
    model = GPT(ModelConfig(c.BPE_VOCAB_SIZE, c.MAX_SEQ_LEN, 1, c.N_HEADS, c.N_EMBED))
    ids = torch.randint(c.BPE_VOCAB_SIZE, (rows, 1024))
    hidden = torch.randn(rows, 1024, c.N_EMBED, requires_grad=True)
    model.hidden = lambda tokens: hidden
    if kind == "whole":
        model_module.MOST_LOGITS = 2**62
    if kind == "native":
        if not hasattr(torch.nn, "LinearCrossEntropyOptions"):
            return 0.0
        options = torch.nn.LinearCrossEntropyOptions()
        model._sum_of_losses = lambda hidden, targets: F.linear_cross_entropy(
            hidden, model.embedding.weight, targets, reduction="sum", ignore_index=-1, options=options
        )
        model_module.MOST_LOGITS = 2**62
    before = runtime.peak_memory_gb(torch.device("cpu"))
    model.loss(ids, ids).backward()
    return runtime.peak_memory_gb(torch.device("cpu")) - before


def data_path(rounds: int) -> dict[str, Any]:
    """从内存映射的词元文件切训练批次（64 × 1024），一个线程。"""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:  # Windows 删不掉还映射着的文件
        path = Path(folder) / "tokens.bin"
        np.random.default_rng(0).integers(0, 10000, 20_000_000, dtype=np.uint16).tofile(path)
        batches = Batches(np.memmap(path, dtype=np.uint16, mode="r"), 1024, 64, seed=0)
        steps = range(20)
        tokens = len(steps) * 64 * 1024
        row = alternate("备训练批次，64 × 1024", tokens, rounds, lambda: [batches.at(step) for step in steps])
    return row | {"dtype": "–"}


def prompt_ids(model: GPT, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    return ids.to(model.embedding.weight.device)


def write(model: GPT, prompt: list[int], tokens: int, songs: int = 1, cuda_graph: bool | None = None) -> None:
    sampling = generation.Sampling(max_tokens=tokens, temperature=0)
    for _ in generation.generate(model, prompt, sampling, stop_id=-1, num_samples=songs, cuda_graph=cuda_graph):
        pass


def alternate(
    name: str,
    tokens: int,
    rounds: int,
    ours: Callable[[], Any],
    peer: Callable[[], Any] | None = None,
    peer_name: str = "–",
    pause: float = 0,
) -> dict[str, Any]:
    """两边轮流各跑 rounds 次，各自先预热一次，换边时停 pause 秒；每次都算作 tokens 个词元。"""
    sides = {"ours": ours} | ({"peer": peer} if peer is not None else {})
    rates: dict[str, list[float]] = {"ours": [], "peer": []}
    for number in range(rounds + 1):
        for side, call in sides.items():
            time.sleep(pause)
            rate = tokens / timed(call)
            if number:
                rates[side].append(rate)
    print(f"  {name} 测完", file=sys.stderr, flush=True)
    return {"name": name, "peer_name": peer_name, **rates}


def timed(call: Callable[[], Any]) -> float:
    """一次调用的秒数，等到加速卡做完。"""
    began = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    elif torch.backends.mps.is_available():
        torch.mps.synchronize()
    return time.perf_counter() - began


def _figure(value: float) -> str:
    """三位以上的数不带小数。"""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:,.2f}"


def print_table(results: list[dict[str, Any]]) -> None:
    print("\n| 做什么（词元/秒） | 精度 | 这里 | 另一边 | 另一边的数 | 比值 | 占内存带宽 |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for row in results:
        ours = statistics.median(row["ours"])
        other, rate, ratio = "–", "–", "–"
        if row["peer"]:
            median = statistics.median(row["peer"])
            other = f"{row['peer_name']} {row.get('peer_dtype', '')}".strip()
            rate, ratio = _figure(median), f"{ours / median:.2f}"
        share = f"{row['of_bandwidth']:.0%}" if "of_bandwidth" in row else "–"
        print(f"| {row['name']} | {row['dtype']} | {_figure(ours)} | {other} | {rate} | {ratio} | {share} |")


if __name__ == "__main__":
    configuration.run_script(main, UserError, runtime.DeviceError)
