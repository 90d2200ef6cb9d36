"""交给别的程序：`python export.py --out 文件夹`。

- `--format hf`：一个文件夹，transformers 的 `AutoModelForCausalLM`、`AutoTokenizer` 直接载入，不需要我们的代码。
- `--format gguf`：一个文件，llama.cpp 载入。
- `--format pt`：本仓库的检查点，半精度，只有写歌与微调用得着的：拿去送人的。

前两种：架构就是顺序残差的 GPT-NeoX；分词器是 sentencepiece BPE 照样搬过去。只有两处不同：别处把用户写的
`<lyric>` 之类认作控制词元，把 U+2581（▁）当作空格。
"""

import importlib.util
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sentencepiece
import torch

import flags
import generation
from flags import Flag, constants
from interchange.gguf_file import write_gguf
from interchange.neox import neox_config, neox_state
from model import GPT
from terminal import UserError, run_script
from tokenizer import CONTROL_SYMBOLS, Tokenizer
from training import checkpoint
from training.checkpoint import BEST, CheckpointError
from writing.kernels import WRITING_DTYPES

DESCRIPTION = "把检查点写成 transformers 的文件夹、llama.cpp 的 GGUF 文件，或一半大小的检查点。"
FLAGS = [
    Flag("checkpoint", Path(constants.CHECKPOINT_DIR) / BEST, flags.path(), "检查点"),
    Flag("out", None, flags.path(), "写到哪里：hf 是文件夹，gguf、pt 是文件"),
    Flag(
        "format",
        "hf",
        flags.one_of("hf", "gguf", "pt"),
        "hf：transformers 的文件夹；gguf：llama.cpp 的文件；pt：本仓库的检查点，半精度",
    ),
    Flag(
        "dtype",
        None,
        flags.one_of("fp32", "bf16", "fp16", "q8_0"),
        "权重的精度；hf 默认 fp32，gguf、pt 默认 fp16；q8_0 只用于 gguf",
    ),
    Flag("force", False, flags.BOOLEAN, "换掉已有的文件或文件夹"),
]
EXPORTED = "README.md config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json".split()
PACKAGES = {"hf": ("transformers", "safetensors"), "gguf": ("gguf",), "pt": ()}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SAMPLE_PROMPT = "今夜我"
SAMPLE_TOKENS = 100


def main(argv: Sequence[str]) -> int:
    given = flags.parse_flags(FLAGS, argv, "export.py", DESCRIPTION)
    options = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    kind, out = options["format"], options["out"] and options["out"].resolve()
    dtype = options["dtype"] or {"hf": "fp32"}.get(kind, "fp16")
    try:
        refuse(kind, dtype, out, options["force"])
    except OSError as error:
        raise UserError(f"看不了 {out}：{error.strerror}") from None
    root = Path.cwd() if "checkpoint" in given else flags.REPOSITORY
    path = root / options["checkpoint"]
    contents = checkpoint.load(path)
    model, tokenizer = checkpoint.restore(contents, path)
    model.eval().requires_grad_(False)

    def write(temporary: Path) -> None:
        if kind == "hf":
            write_hf(temporary, model, tokenizer, contents, dtype)
        elif kind == "gguf":
            write_gguf(temporary, model, tokenizer, contents["iter"], dtype)
        else:
            write_checkpoint(temporary, model, tokenizer, contents, dtype)

    try:
        put_in_place(out, write)
    except OSError as error:
        raise UserError(f"写不进 {out}：{error.strerror or '磁盘满了？'}") from None
    print(f"已写好 {out}（{kind}，{dtype}，第 {contents['iter']} 步）")
    return 0


def refuse(kind: str, dtype: str, out: Path | None, force: bool) -> None:
    """不必读检查点就知道做不成的，先说。

    Raises:
        UserError: 没有 --out，精度与格式不合，缺少软件包，或会盖掉已有的东西。
    """
    if out is None:
        raise UserError("请用 --out 写明位置，例如 --out lyrics-hf")
    if kind != "gguf" and dtype == "q8_0":
        raise UserError("--dtype q8_0 只用于 --format gguf")
    missing = [name for name in PACKAGES[kind] if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"缺少 {'、'.join(missing)}：pip install -r requirements-export.txt")
    if kind == "hf" and out.is_file() or kind != "hf" and out.is_dir():
        raise UserError(f"--out {out}：{'hf 要文件夹，这是文件' if kind == 'hf' else f'{kind} 要文件，这是文件夹'}")
    taken = out.is_file() or (out.is_dir() and any(out.iterdir()))
    if taken and not force:
        raise UserError(f"{out} 已存在；加 --force 换掉它，或换一个 --out")
    if out.exists() and not (out.is_file() or out.is_dir()):
        raise UserError(f"{out} 不是普通的文件，没有动它；请换一个 --out")
    if taken and kind != "hf" and not {"gguf": _is_gguf, "pt": _is_checkpoint}[kind](out):
        raise UserError(f"{out} 不是 {'GGUF 文件' if kind == 'gguf' else '检查点'}，没有动它；请换一个 --out")
    if kind == "hf" and taken and not {"config.json"} <= {entry.name for entry in out.iterdir()} <= set(EXPORTED):
        raise UserError(f"{out} 里有不是导出的东西，没有动它；请换一个 --out")


def _is_gguf(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"GGUF"


def _is_checkpoint(path: Path) -> bool:
    try:
        checkpoint.load(path)
    except CheckpointError:
        return False
    return True


def write_checkpoint(path: Path, model: GPT, tokenizer: Tokenizer, contents: dict[str, Any], dtype: str) -> None:
    """与 best.pt 相同的内容；训练配置里的路径是别人机器上的，不带。"""
    config = {name: value for name, value in contents["config"].items() if name.upper() in flags.RULES}
    config = {name: value for name, value in config.items() if flags.RULES[name.upper()].kind is not Path}
    figures = contents["iter"], contents["val_loss"], contents["val_bpc"]
    model = model.to(DTYPES[dtype])
    checkpoint.save(
        path, checkpoint.model_contents(model, tokenizer, config, *figures, contents["data"], contents["corpus"])
    )


def put_in_place(out: Path, write: Callable[[Path], None]) -> None:
    """先写在旁边，写完才换上：中途停下不留下半个。"""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as folder:
        temporary = Path(folder) / out.name
        write(temporary)
        old = Path(folder) / "old"  # 随临时文件夹一起删去
        if out.is_dir():
            out.rename(old)
        try:
            temporary.replace(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise


# ---------------------------------------------------------------------------
# transformers
# ---------------------------------------------------------------------------


def write_hf(folder: Path, model: GPT, tokenizer: Tokenizer, contents: dict[str, Any], dtype: str) -> None:
    """config.json、model.safetensors、分词器、generation_config.json 与模型卡。"""
    from safetensors import SafetensorError
    from transformers import GenerationConfig, GPTNeoXConfig, GPTNeoXForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
    neox: Any = GPTNeoXForCausalLM(GPTNeoXConfig(**neox_config(model.config) | special))
    neox.load_state_dict(neox_state(model), strict=False)
    neox.tie_weights()
    neox.generation_config = GenerationConfig(
        **special,
        pad_token_id=tokenizer.eos_id,
        do_sample=True,
        top_p=generation.Sampling.top_p,
        top_k=0,
        max_new_tokens=generation.Sampling.max_tokens,
        suppress_tokens=tokenizer.never_written,
    )
    try:
        neox.to(WRITING_DTYPES[dtype]).save_pretrained(folder)
    except SafetensorError as error:  # 写文件的错误，却不是 OSError
        raise OSError(str(error)) from None
    hf_tokenizer(tokenizer, model.config.max_seq_len).save_pretrained(folder)
    # 4.x 版的 transformers 认这几个旧名称；缺了 rotary_pct，它会不声不响地只转四分之一的维
    rotary = {"rotary_pct": 1.0, "rotary_emb_base": model.config.rope_base}
    change_json(folder / "config.json", lambda entries: entries | rotary)
    change_json(folder / "tokenizer_config.json", with_old_names)
    (folder / "model.safetensors").chmod((folder / "config.json").stat().st_mode)  # 否则别的用户读不了
    (folder / "README.md").write_text(model_card(model, tokenizer, contents), encoding="utf-8")


def hf_tokenizer(tokenizer: Tokenizer, max_length: int) -> Any:
    """同样切分的 `PreTrainedTokenizerFast`。

    sentencepiece 的 BPE 每次合并分数最高的一对相邻词元，合并的结果在词表里就算一对；所以每个词元的每种两分
    都是一条规则，按编号（即分数）排列。
    """
    import tokenizers
    from tokenizers import AddedToken, decoders, models, normalizers, processors
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import generate_merges

    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    vocab = {processor.id_to_piece(index): index for index in range(tokenizer.vocab_size)}
    added = {tokenizer.newline_id: AddedToken("\n", normalized=False, special=False)}
    controls = [tokenizer.bos_id, tokenizer.eos_id, tokenizer.title_id, tokenizer.singer_id, tokenizer.lyric_id]
    added |= {index: AddedToken(processor.id_to_piece(index), normalized=False, special=True) for index in controls}
    special = {*added, tokenizer.unk_id, *filter(processor.is_byte, vocab.values())}
    merges = generate_merges({piece: index for piece, index in vocab.items() if index not in special}, None)
    unknown = processor.id_to_piece(tokenizer.unk_id)
    fast = tokenizers.Tokenizer(models.BPE(vocab, merges, unk_token=unknown, fuse_unk=False, byte_fallback=True))
    fast.normalizer = normalizers.Replace(" ", "\u2581")
    fast.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_tokens([added[index] for index in sorted(added)])
    begin, lyric = processor.id_to_piece(tokenizer.bos_id), processor.id_to_piece(tokenizer.lyric_id)
    fast.post_processor = processors.TemplateProcessing(
        single=f"{begin} {lyric} $A", special_tokens=[(begin, tokenizer.bos_id), (lyric, tokenizer.lyric_id)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=fast,
        bos_token=begin,
        eos_token=processor.id_to_piece(tokenizer.eos_id),
        pad_token=processor.id_to_piece(tokenizer.eos_id),
        unk_token=unknown,
        additional_special_tokens=[processor.id_to_piece(index) for index in controls[2:]],
        model_max_length=max_length,
        clean_up_tokenization_spaces=False,
        padding_side="left",  # 成批续写时，短的补在左边
        model_input_names=["input_ids", "attention_mask"],
    )


def with_old_names(entries: dict[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json 换成 4.x 与 5.x 都认的写法。"""
    entries = {name: value for name, value in entries.items() if name not in ("backend", "extra_special_tokens")}
    return entries | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "additional_special_tokens": list(CONTROL_SYMBOLS),
    }


def change_json(path: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    entries = change(json.loads(path.read_text(encoding="utf-8")))
    path.write_text(json.dumps(entries, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


USAGE = """## 用法

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("这个文件夹")
model = AutoModelForCausalLM.from_pretrained("这个文件夹")
song = model.generate(**tokenizer("今夜我", return_tensors="pt"))
print(tokenizer.decode(song[0], skip_special_tokens=True))
```

一首歌是 `<s>[<title>歌名][<singer>歌手]<lyric>行\\n行\\n…</s>`，方括号里的可省。分词器自动在开头加上 `<s><lyric>`；\
要写明歌名、歌手，用 `add_special_tokens=False` 并自己写全开头。用户写的 `<lyric>` 之类在这里会被认作控制词元，\
U+2581（▁）会被当作空格，其余文字的切分与训练时完全相同。
"""


def model_card(model: GPT, tokenizer: Tokenizer, contents: dict[str, Any]) -> str:
    """模型卡：检查点里知道的，都填上。"""
    inside, embedding = model.parameter_counts()
    c, statistics, trained = model.config, contents["data"], contents["config"]
    loss = (
        f"{contents['val_loss']:.3f}，{contents['val_bpc']:.3f} 比特/字"
        if contents["val_bpc"] is not None
        else "未记录"
    )
    corpus = "未记录"
    if {"songs", "characters", "tokens"} <= set(statistics):
        corpus = (
            f"{statistics['songs']:,} 首，{statistics['characters']:,} 字，{statistics['tokens']:,} 词元；"
            f"训练 {statistics.get('train_songs', 0):,} 首，留出 {statistics.get('val_songs', 0):,} 首"
        )
    batch = trained.get("batch_size")
    origin = "由另一个检查点微调的" if trained.get("init_from") else "从零训练的"
    steps = f"{contents['iter']} 步" + (f"，每步 {batch} × {trained.get('max_seq_len')} 词元" if batch else "")
    return f"""---
language: zh
library_name: transformers
pipeline_tag: text-generation
tags: [lyrics, chinese, gpt-neox]
license: other
---

# 中文歌词模型

{origin}中文歌词模型：{c.n_layers} 层 × {c.n_embed} 维 × {c.n_heads} 头，上下文 {c.max_seq_len} 词元；\
参数 {inside / 1e6:.1f}M，另有词嵌入 {embedding / 1e6:.1f}M。结构是顺序残差的 GPT-NeoX。

| | |
| --- | --- |
| 训练 | {steps} |
| 留出的歌上的损失 | {loss} |
| 语料 | {corpus} |
| 词表 | {tokenizer.vocab_size:,}，sentencepiece BPE，带字节回退 |

{USAGE}
## 样例

`{SAMPLE_PROMPT}` 起头（种子 0，默认的抽样设置）：

```text
{sample_song(model, tokenizer)}
```

## 许可

权重由语料训练而来。语料里歌词的权利属于各自的作者与权利人，训练者没有也不能转让；\
公开或商用之前，请自己确认语料的许可，并检查输出有没有照抄原句。
"""


def sample_song(model: GPT, tokenizer: Tokenizer) -> str:
    sampling = generation.Sampling(max_tokens=SAMPLE_TOKENS, seed=0)
    prompt = tokenizer.song(SAMPLE_PROMPT)
    steps = generation.generate(model, prompt, sampling, tokenizer.eos_id, tokenizer.never_written)
    return SAMPLE_PROMPT + tokenizer.decode([token for step in steps for _, token in step])


if __name__ == "__main__":
    run_script(main, UserError, CheckpointError)
