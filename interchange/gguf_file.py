"""把模型写成 llama.cpp 的 GGUF 文件。"""

from pathlib import Path
from typing import Any

import sentencepiece
import torch

from model import GPT
from tokenizer import Tokenizer


def write_gguf(path: Path, model: GPT, tokenizer: Tokenizer | None, step: int, dtype: str) -> None:
    """GPT-NeoX 的 GGUF。qkv 的排列与我们的相同（[q|k|v] 各含全部的头），输出层另存一份。

    llama.cpp 的 GELU 用 tanh 近似，所以 logits 与我们的差千分之几。

    Args:
        step: 训练了多少步，记在文件里。
        dtype: fp32、fp16、bf16 或 q8_0；一维的总是 fp32。
        tokenizer: None 时不带分词器，只能按词元编号用，测速用。
    """
    import gguf

    kinds = {
        "fp32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
        "fp16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
        "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
        "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    }
    kind, file_type = kinds[dtype]
    c = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.GPTNEOX])
    writer.add_name("中文歌词")
    writer.add_description(f"第 {step} 步")
    writer.add_file_type(file_type)
    writer.add_context_length(c.max_seq_len)
    writer.add_embedding_length(c.n_embed)
    writer.add_feed_forward_length(4 * c.n_embed)
    writer.add_block_count(c.n_layers)
    writer.add_head_count(c.n_heads)
    writer.add_rope_dimension_count(c.head_dim)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_layer_norm_eps(c.layer_norm_eps)
    writer.add_parallel_residual(False)
    if tokenizer is not None:
        add_gguf_tokenizer(writer, tokenizer)
    else:
        writer.add_tokenizer_model("no_vocab")
        writer.add_vocab_size(c.vocab_size)
    for name, tensor in gguf_tensors(model).items():
        array = tensor.float().numpy()
        wanted = kind if tensor.dim() == 2 else gguf.GGMLQuantizationType.F32
        if wanted is gguf.GGMLQuantizationType.Q8_0 and array.shape[-1] % 32:
            wanted = gguf.GGMLQuantizationType.F16  # q8_0 一块 32 个数
        writer.add_tensor(name, gguf.quants.quantize(array, wanted), raw_dtype=wanted)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_gguf_tokenizer(writer: Any, tokenizer: Tokenizer) -> None:
    """llama.cpp 的 SPM 分词器：词元、分数、种类。"""
    import gguf

    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_bytes)
    kinds = []
    for index in range(tokenizer.vocab_size):
        if processor.is_unknown(index):
            kinds.append(gguf.TokenType.UNKNOWN)
        elif processor.is_control(index):
            kinds.append(gguf.TokenType.CONTROL)
        elif processor.is_byte(index):
            kinds.append(gguf.TokenType.BYTE)
        else:
            kinds.append(gguf.TokenType.USER_DEFINED if index == tokenizer.newline_id else gguf.TokenType.NORMAL)
    writer.add_tokenizer_model("llama")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([processor.id_to_piece(index) for index in range(tokenizer.vocab_size)])
    writer.add_token_scores([processor.get_score(index) for index in range(tokenizer.vocab_size)])
    writer.add_token_types(kinds)
    writer.add_bos_token_id(tokenizer.bos_id)
    writer.add_eos_token_id(tokenizer.eos_id)
    writer.add_unk_token_id(tokenizer.unk_id)
    writer.add_add_bos_token(True)
    writer.add_add_eos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_remove_extra_whitespaces(False)


def gguf_tensors(model: GPT) -> dict[str, torch.Tensor]:
    tensors = {"token_embd.weight": model.embedding.weight, "output.weight": model.embedding.weight}
    for kind in ("weight", "bias"):
        tensors[f"output_norm.{kind}"] = getattr(model.norm, kind)
        for number, block in enumerate(model.blocks):
            layer = {
                "attn_norm": block.norm_1,
                "attn_qkv": block.attention.qkv,
                "attn_output": block.attention.proj,
                "ffn_norm": block.norm_2,
                "ffn_up": block.feed_forward.fc,
                "ffn_down": block.feed_forward.proj,
            }
            tensors |= {f"blk.{number}.{name}.{kind}": getattr(module, kind) for name, module in layer.items()}
    return tensors
