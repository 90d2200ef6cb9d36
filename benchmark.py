"""测速：`python benchmark.py`，十来分钟，一行一行地打印一张表；`--quick` 两分钟。

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
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

import flags
import generation
from flags import Flag, constants
from interchange.engines import by_ctranslate2, by_llama
from interchange.neox import neox_config, neox_state
from lyrics.form import make_form
from lyrics.plan import SongPlan
from lyrics.vocabulary import Vocabulary
from model import GPT, ModelConfig
from optimizer import build_optimizers
from terminal import UserError, run_script
from training.device import DeviceError, cpu_features, device_name, native_half, peak_flops, pick_device, setup
from training.processes import Processes
from writing.cuda_graph import GraphPool, RecordedDraw, RecordedStep, worth_recording
from writing.decode import CannotFuse, Decoder, fused_steps, load_library
from writing.drafts import Composer
from writing.kernels import WRITING_DTYPES, prepare_for_writing

DESCRIPTION = "测速；结果是中位数与比值。写歌用默认大小（85M）的模型、随机权重、贪心：速度与权重的值无关。"
FLAGS = [
    Flag("max_tokens", 200, flags.whole(2), "写多少个词元"),
    Flag("rounds", 5, flags.whole(1), "测几轮，取中位数"),
    Flag("songs", 32, flags.whole(2), "成批写歌时几首一批"),
    Flag("quick", False, flags.BOOLEAN, "只测一轮，每项少写些，训练不编译"),
    Flag("only", "all", flags.one_of("all", "writing", "training"), "只测写歌或训练"),
    Flag("dtype", "all", flags.one_of("all", *WRITING_DTYPES), "精度；all 是这台机器上有用的几种"),
    Flag("device", "auto", flags.text(), "auto、cpu、cuda、mps"),
    Flag("json", None, flags.path(optional=True), "把结果另存为 JSON 文件"),
]
PROMPT = list(range(8))  # 写歌的开头；速度与内容无关
PREFILL_TOKENS = 512
TRAINING_STEPS = 3  # 每轮训练几步
FORM = 8, 7  # 句式：几行，每行几个字
CANDIDATES = 8
CTRANSLATE2_TYPES = {"fp32": "float32", "int8": "int8"}  # 在 CPU 上有的
LLAMA_TYPES = {"fp32": "fp32", "bf16": "fp16", "int8": "q8_0"}
PAUSE = 0.5  # 秒；别的引擎的线程算完还要空转一阵，等它们停了再换边
PEER = "transformers"
STEP = "make_step"  # 模型上记着它的一步的属性
SHAPES = {  # 训练：层数、头数、维度、每步几个序列、长度
    "cpu 预设": (4, 4, 256, 8, 256),
    "14.6M": (6, 6, 384, 8, 256),
    "85M": (12, 12, 768, 16, 1024),
}
BIGGEST = "85M"  # 只在显卡上测


def main(argv: Sequence[str]) -> int:
    given = flags.parse_flags(FLAGS, argv, "benchmark.py", DESCRIPTION)
    options = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    if options["quick"]:
        options |= {"max_tokens": min(options["max_tokens"], 40), "rounds": 1}
    if options["max_tokens"] > (longest := constants.MAX_SEQ_LEN - len(PROMPT)):
        raise UserError(f"--max_tokens {options['max_tokens']}：上下文 {constants.MAX_SEQ_LEN} 里最多测 {longest}")
    device = use_device(options["device"])
    if options["dtype"] == "int8" and device.type != "cpu":
        raise UserError("--dtype int8 只用于 CPU")
    machine = f"{device_name(device)} · {cpu_features()} · torch {torch.__version__} · {platform.platform()}"
    print(f"机器：{machine}\n\n{HEADER}", flush=True)
    results = []
    try:
        for row in measure(device, options):
            results.append(row)
            print(table_line(row), flush=True)  # 中途停下，测过的也在
    finally:
        if options["json"] is not None:
            contents = {"machine": machine, "options": {**options, "json": None}, "results": results}
            Path(options["json"]).write_text(json.dumps(contents, ensure_ascii=False, indent=1), encoding="utf-8")
    return 0


def measure(device: torch.device, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if options["only"] != "writing":
        for name in [name for name in SHAPES if device.type == "cuda" or name != BIGGEST]:
            yield training(name, device, options["rounds"], compiled=not options["quick"])
        if device.type == "cuda":
            yield training(BIGGEST, device, options["rounds"], not options["quick"], "muon")
    if options["only"] != "training":
        yield from measure_writing(device, options)


def measure_writing(device: torch.device, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
    tokens, rounds = options["max_tokens"], options["rounds"]
    dtypes = [options["dtype"]]
    if options["dtype"] == "all":
        dtypes = ["fp32", "bf16", "int8"] if device.type == "cpu" else ["fp32", "bf16"]
    bandwidth, library = memory_bandwidth(device), None
    if device.type == "cpu":
        with contextlib.suppress(CannotFuse):
            library = load_library(lambda message: print(message, file=sys.stderr))
    for dtype in dtypes:
        model, peer, peer_dtype = default_model(), None, "fp32" if dtype == "int8" else dtype
        weight_bytes = sum(model.parameter_counts()) * (1 if dtype == "int8" else WRITING_DTYPES[dtype].itemsize)
        if importlib.util.find_spec(PEER) is not None:
            peer = as_neox(model).to(device, WRITING_DTYPES[peer_dtype])
        fused = library and fused_steps(Decoder(library, model, dtype, torch.get_num_threads()))
        model = prepare_for_writing(model.to(device), dtype)
        setattr(model, STEP, fused or generation.TorchStep)  # 写歌的各项都用它
        types = {"dtype": dtype, "peer_dtype": peer_dtype}
        row = decode(model, peer, tokens, rounds) | types
        yield row | {"of_bandwidth": statistics.median(row["ours"]) * weight_bytes / bandwidth}
        if fused:
            yield against_torch(model, tokens, rounds) | {"dtype": dtype}
        yield from other_engines(model, dtype, tokens, rounds)
        yield prefill(model, peer, rounds) | types
        if device.type == "cuda":
            yield graphed(model, tokens, rounds) | {"dtype": dtype}
        yield batch(model, options["songs"], min(tokens, 60), rounds) | {"dtype": dtype}
        for row in formed(model, rounds):
            yield row | {"dtype": dtype}


def use_device(name: str) -> torch.device:
    """选定设备；指明了卡号的，就在那块卡上测。"""
    device = pick_device(name)
    if device.index is not None:
        torch.cuda.set_device(device)
    return device


def random_model(config: ModelConfig) -> GPT:
    """随机权重（每次相同）的模型。"""
    torch.manual_seed(0)
    return GPT(config).requires_grad_(False)


def default_model() -> GPT:
    """config.py 常量所定的模型，随机权重。"""
    c = constants
    return random_model(ModelConfig(c.BPE_VOCAB_SIZE, c.MAX_SEQ_LEN, c.N_LAYERS, c.N_HEADS, c.N_EMBED))


def as_neox(model: GPT) -> Any:
    """同样权重的 transformers GPT-NeoX：顺序残差、rotary_pct=1、erf GELU、共用输出层。"""
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    neox = GPTNeoXForCausalLM(GPTNeoXConfig(**neox_config(model.config))).eval()
    missing, unexpected = neox.load_state_dict(neox_state(model), strict=False)
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


@contextlib.contextmanager
def own_process(prepare: Callable[..., Callable[..., Any]], *options: Any) -> Iterator[Callable[..., Any]]:
    """prepare(*options) 在另一个进程里备好的，当作函数来调用：同一个进程里有两套 OpenMP，两边都会慢四成。"""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, spawn, _prepare_here, (prepare, *options)) as executor:
        yield lambda *given: executor.submit(_call_here, *given).result()


_prepared: Callable[..., Any]  # 在另一个进程里备好的


def _prepare_here(prepare: Callable[..., Callable[..., Any]], *options: Any) -> None:
    global _prepared
    _prepared = prepare(*options)


def _call_here(*given: Any) -> Any:
    return _prepared(*given)


def decode(model: GPT, peer: Any, tokens: int, rounds: int) -> dict[str, Any]:
    """一首歌，逐个词元。"""
    ids = torch.tensor([PROMPT], device=model.embedding.weight.device)
    options = {"max_new_tokens": tokens, "do_sample": False, "pad_token_id": 0}
    by_peer = None if peer is None else lambda: peer.generate(ids, attention_mask=torch.ones_like(ids), **options)
    return alternate(f"写 {tokens} 个词元", tokens, rounds, lambda: write(model, tokens), by_peer, PEER)


def other_engines(model: GPT, dtype: str, tokens: int, rounds: int) -> Iterator[dict[str, Any]]:
    """一首歌，与装了的别的推理引擎相比：同样的权重与线程数，都在 CPU 上，各在自己的进程里。"""
    if model.embedding.weight.device.type != "cpu":
        return
    engines = [  # 要装的软件包、各精度的叫法、怎样备好；第一个包的名字写进表里
        (("ctranslate2",), CTRANSLATE2_TYPES, by_ctranslate2),
        (("llama_cpp", "gguf"), LLAMA_TYPES, by_llama),
    ]
    for packages, types, build in engines:
        if dtype not in types or any(importlib.util.find_spec(package) is None for package in packages):
            continue
        with own_process(_engine, build, model.config, types[dtype], len(PROMPT) + tokens) as engine:
            ours, by_engine = (lambda: write(model, tokens)), (lambda engine=engine: engine(PROMPT, tokens))
            row = alternate(f"写 {tokens} 个词元", tokens, rounds, ours, by_engine, packages[0], PAUSE)
        yield row | {"dtype": dtype, "peer_dtype": types[dtype]}


def _engine(build: Callable[..., Any], config: ModelConfig, kind: str, capacity: int) -> Callable[..., list[int]]:
    """在它自己的进程里备好引擎，权重与 `random_model` 的相同。"""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        return build(random_model(config), kind, Path(folder), capacity)


@torch.inference_mode()
def prefill(model: GPT, peer: Any, rounds: int) -> dict[str, Any]:
    """读一段长的开头，到第一个词元的 logits。"""
    length = min(PREFILL_TOKENS, model.config.max_seq_len)
    ids = torch.arange(length, device=model.embedding.weight.device)[None] % model.config.vocab_size
    by_peer = None if peer is None else lambda: peer(ids, use_cache=True, logits_to_keep=1)

    def ours() -> None:
        generation.TorchStep(model, model.new_cache(1, length))(ids)

    return alternate(f"读 {length} 个词元的开头", length, rounds, ours, by_peer, PEER)


def graphed(model: GPT, tokens: int, rounds: int) -> dict[str, Any]:
    """一首歌，重放 CUDA 图与逐个启动内核相比；录图的时间算在内。"""
    with_graph, without = (lambda: write(model, tokens)), (lambda: write(model, tokens, 1, generation.TorchStep))
    return alternate(f"写 {tokens} 个词元，CUDA 图", tokens, rounds, with_graph, without, "逐个启动")


def against_torch(model: GPT, tokens: int, rounds: int) -> dict[str, Any]:
    """一首歌，编译好的一步与 torch 的一步相比。"""
    fused, plain = (lambda: write(model, tokens)), (lambda: write(model, tokens, make_step=generation.TorchStep))
    return alternate(f"写 {tokens} 个词元", tokens, rounds, fused, plain, "torch 的一步")


def batch(model: GPT, songs: int, tokens: int, rounds: int) -> dict[str, Any]:
    """一批里的几首，与一首接一首相比（后者只写两首，速度相同）。"""
    together, apart = (lambda: write(model, tokens, songs)), (lambda: repeat(lambda: write(model, tokens), 2))
    row = alternate(f"一批写 {songs} 首", songs * tokens, rounds, together, apart, "一首接一首")
    return row | {"peer": [rate * 2 / songs for rate in row["peer"]]}


def formed(model: GPT, rounds: int) -> Iterator[dict[str, Any]]:
    """守行长与韵式写一首，与自由写同样多的词元相比；每行几稿取一，与一稿相比。"""
    lines, characters = FORM
    tokens = lines * (characters + 1)
    vocabulary = single_characters(model.config.vocab_size)
    form = make_form(lines, str(characters), "auto", "AABA", "", None)
    sampling = generation.Sampling(max_tokens=tokens)

    make_step, draw = step_of(model), generation.draw
    if model.embedding.weight.is_cuda:
        make_step, draw = GraphPool(), RecordedDraw()

    def compose(candidates: int) -> None:
        plan = SongPlan(form, vocabulary, lambda text: [])
        ends = [vocabulary.newline_id, vocabulary.eos_id]
        composer = Composer(model, PROMPT, sampling, ends, candidates=candidates, make_step=make_step, draw=draw)
        list(plan.write(composer))

    def freely() -> None:
        list(generation.generate(model, PROMPT, sampling, stop_id=-1, make_step=make_step, draw=draw))

    name, one, several = f"守句式写 {lines} 行 × {characters} 字", (lambda: compose(1)), (lambda: compose(CANDIDATES))
    yield alternate(name, tokens, rounds, one, freely, "自由写")
    yield alternate(f"{name}，每行 {CANDIDATES} 稿", tokens, rounds, several, one, "1 稿")


def single_characters(vocab_size: int) -> Vocabulary:
    """只有单字的词表：随机权重的模型写出的每个词元都是一个字。"""
    characters = [chr(0x4E00 + number).encode() for number in range(vocab_size - 2)]
    return Vocabulary([b"", b"\n", *characters], newline_id=1, eos_id=0)


def training(name: str, device: torch.device, rounds: int, compiled: bool, optimizer: str = "adamw") -> dict[str, Any]:
    """一个优化步：前向、反向、裁剪、更新；混合精度，都不丢弃。另一边总是 AdamW。

    两边各在自己的进程里，轮流走 TRAINING_STEPS 步：我们的进程照 train.py 设置内存分配，另一边是平常的循环。
    """
    kind = native_half(device)
    dtype = next((key for key, value in WRITING_DTYPES.items() if value == kind), "fp32")
    options = SHAPES[name], str(device), compiled, optimizer
    tokens = TRAINING_STEPS * SHAPES[name][3] * SHAPES[name][4]
    memory: list[float | None] = []
    with contextlib.ExitStack() as held:
        ours, peer = held.enter_context(own_process(_steps, _our_step, *options)), None
        if importlib.util.find_spec(PEER) is not None:
            peer = held.enter_context(own_process(_steps, _peer_step, *options))
        title = f"训练一步，{name}" + ("" if optimizer == "adamw" else f"，{optimizer}")
        row = alternate(title, tokens, rounds, lambda: memory.append(ours()), peer, PEER)
    row |= {"dtype": dtype, "peer_dtype": dtype}
    if device.type == "cuda" and (peak := peak_flops(device)):
        flops = random_model(training_config(SHAPES[name])).flops_per_token()
        row |= {"mfu": statistics.median(row["ours"]) * flops / peak, "memory": memory[-1]}
    return row


def training_config(shape: tuple[int, ...]) -> ModelConfig:
    layers, heads, width, _, length = shape
    return ModelConfig(constants.BPE_VOCAB_SIZE, length, layers, heads, width)


def _steps(
    build: Callable[..., Any], shape: tuple[int, ...], device_name: str, compiled: bool, optimizer: str
) -> Callable[[], float | None]:
    """在测速的进程里备好模型与批次；走几步，返回显存峰值（GiB）。"""
    device = use_device(device_name)
    if build is _our_step:
        setup(device_name, True, 0, Processes())
    elif device.type == "cuda":
        torch.set_float32_matmul_precision("high")  # 与我们的一样
    torch.manual_seed(0)
    model = GPT(training_config(shape)).to(device).train()
    ids = torch.randint(model.config.vocab_size, (shape[3], shape[4] + 1), device=device)
    wrap = (lambda call: torch.compile(call, dynamic=False)) if compiled else (lambda call: call)
    loss, module, optimizers = build(model, ids, wrap, optimizer)
    kind = native_half(device)

    def step() -> None:
        with torch.autocast(device.type, dtype=kind, enabled=kind is not None):
            value = loss()
        value.backward()
        torch.nn.utils.clip_grad_norm_(module.parameters(), constants.GRAD_CLIP)
        for each in optimizers:
            each.step()
            each.zero_grad(set_to_none=True)

    def steps() -> float | None:
        timed(lambda: repeat(step, TRAINING_STEPS))
        return torch.cuda.max_memory_allocated(device) / 2**30 if device.type == "cuda" else None

    return steps


def _our_step(model: GPT, ids: torch.Tensor, wrap: Callable[[Any], Any], optimizer: str) -> tuple:
    x, y = ids[:, :-1].contiguous(), ids[:, 1:].contiguous()
    loss, half = wrap(model.loss), native_half(ids.device)
    optimizers = build_optimizers(optimizer, model, 1e-4, 1e-4, 0.1, half).values()
    return lambda: loss(x, y) / y.numel(), model, optimizers


def _peer_step(model: GPT, ids: torch.Tensor, wrap: Callable[[Any], Any], _: str) -> tuple:
    """平常的写法：labels 由模型自己右移，AdamW 取默认。"""
    neox = as_neox(model).to(ids.device).train()
    forward, x = wrap(neox), ids[:, :-1].contiguous()
    optimizer = torch.optim.AdamW(neox.parameters(), lr=1e-4, weight_decay=0.1)
    return lambda: forward(input_ids=x, labels=x).loss, neox, [optimizer]


_recorded_draw = RecordedDraw()


def step_of(model: GPT) -> generation.MakeStep:
    return getattr(model, STEP, generation.TorchStep)


def write(model: GPT, tokens: int, songs: int = 1, make_step: generation.MakeStep | None = None) -> None:
    """贪心写 songs 首；CUDA 上写得够长就录成图。"""
    device, sampling, draw = (
        model.embedding.weight.device,
        generation.Sampling(max_tokens=tokens, temperature=0),
        generation.draw,
    )
    if make_step is None and worth_recording(device, None, tokens, songs):
        make_step, draw = RecordedStep, _recorded_draw
    step = make_step or step_of(model)
    for _ in generation.generate(model, PROMPT, sampling, stop_id=-1, num_samples=songs, make_step=step, draw=draw):
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
    return {"name": name, "peer_name": peer_name, **rates}


def repeat(call: Callable[[], Any], times: int) -> None:
    for _ in range(times):
        call()


def timed(call: Callable[[], Any]) -> float:
    """一次调用的秒数，等到加速卡做完。"""
    began = time.perf_counter()
    call()
    if torch.accelerator.is_available():
        torch.accelerator.synchronize()
    return time.perf_counter() - began


def _figure(value: float) -> str:
    """三位以上的数不带小数。"""
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}" if value >= 10 else f"{value:,.2f}"


HEADER = "| 做什么（词元/秒） | 精度 | 这里 | 另一边 | 另一边的数 | 比值 | 占内存带宽，或 MFU |\n" + "| --- " * 7 + "|"


def table_line(row: dict[str, Any]) -> str:
    ours = statistics.median(row["ours"])
    other, rate, ratio = "–", "–", "–"
    if row["peer"]:
        median = statistics.median(row["peer"])
        other = f"{row['peer_name']} {row.get('peer_dtype', '')}".strip()
        rate, ratio = _figure(median), f"{ours / median:.2f}"
    share = f"{row['of_bandwidth']:.0%}" if "of_bandwidth" in row else "–"
    share = f"MFU {row['mfu']:.1%}，{row['memory']:.1f} GiB" if "mfu" in row else share
    return f"| {row['name']} | {row['dtype']} | {_figure(ours)} | {other} | {rate} | {ratio} | {share} |"


if __name__ == "__main__":
    run_script(main, UserError, DeviceError)
