"""别的推理引擎，载入同样的权重：benchmark.py 用来比速度，测试用来比写出的歌。"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from interchange.gguf_file import write_gguf
from model import GPT

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

    def fill(to: Any, module: Any, weight: str = "weight", bias: str = "bias") -> None:
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
