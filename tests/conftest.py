"""全部测试共用的准备。"""

import os
import signal
from pathlib import Path

import hypothesis
import pytest
import torch
from small_writer import FIXES_LINES, LINES, MAX_SEQ_LEN, settings
from tiny import TINY, write_corpus
from workshop import Workshop, make_song

import inference
import tokenizer as tokenizer_module
import train
from inference import Conversation, Printer
from lyrics.copies import CopyIndex
from model import GPT, ModelConfig
from terminal import UserError
from training import checkpoint
from writing import loading
from writing.writer import Writer

pytest.register_assert_rewrite("browser", "served")  # 出错时看得见两边各是什么
os.environ["OMP_NUM_THREADS"] = "1"  # 测试启动的进程也只用一个线程，见 one_thread

# 用时随机器的忙闲而变，不算对错；CI 上每次同样的例子。
hypothesis.settings.register_profile(
    "here",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("here")

USUAL = {
    "SIGINT": signal.default_int_handler,
    "SIGTERM": signal.SIG_DFL,
    "SIGHUP": signal.SIG_DFL,
    "SIGQUIT": signal.SIG_DFL,
}


def pytest_configure(config):
    """nohup、后台脚本、编辑器交下来的「不理」都改回平常的处理；点名要的测试，慢的也跑。"""
    for name, handler in USUAL.items():
        number = getattr(signal, name, None)  # Windows 没有后两个
        if number is not None and signal.getsignal(number) in (signal.SIG_IGN, None):
            signal.signal(number, handler)
    given = [str(argument) for argument in config.invocation_params.args]
    named = config.option.keyword or any("::" in argument for argument in given)
    if named and not any(argument.startswith("-m") for argument in given):
        config.option.markexpr = config.option.markexpr.replace("not slow and ", "")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """测试里的张量极小，多线程只会互相等待：两核的机器上一个词元 0.5 毫秒变成几十毫秒。"""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"), 40)


@pytest.fixture
def run(corpus, tmp_path, capsys):
    """在临时文件夹里训练：run(名字, 参数…) → (退出码, 标准输出, 检查点文件夹)。"""

    def call(name: str, *extra: str, folder: Path = corpus):
        directory = tmp_path / name
        argv = [*TINY, "--lyrics_dir", str(folder), "--checkpoint_dir", str(directory)]
        argv += ["--cache_dir", str(tmp_path / "cache"), "--bpe_model_prefix", str(tmp_path / "bpe"), *extra]
        code = train.main(argv)
        return code, capsys.readouterr().out, directory

    return call


# ---- 语料 ----


@pytest.fixture
def workshop(tmp_path):
    return Workshop(tmp_path)


@pytest.fixture
def forty(workshop):
    """40 首歌，已经准备过一次。"""
    workshop.write("songs.json", [make_song(seed) for seed in range(40)])
    workshop.corpus = workshop.prepare()
    return workshop


# ---- 写歌 ----


@pytest.fixture(scope="session")
def tokenizer():
    return tokenizer_module.train(LINES * 20, 400)


@pytest.fixture(scope="session")
def trained(tokenizer, tmp_path_factory) -> Path:
    """随机权重的小模型：多写汉字和换行，偶尔写字节（半个字、坏字节），从不自己收尾。"""
    torch.manual_seed(0)
    model_config = ModelConfig(tokenizer.vocab_size, MAX_SEQ_LEN, n_layers=2, n_heads=2, n_embed=32)
    model = GPT(model_config).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            parameter.normal_(std=0.2 if name == "embedding.weight" else 0.5)
    # 词嵌入的第 0 维不受前文影响地加到 logits 上。
    model.norm.weight[0], model.norm.bias[0] = 0.0, 1.0
    bias = torch.tensor([-1.5 if len(piece) == 1 else 1.0 for piece in tokenizer.token_bytes])
    bias[tokenizer.eos_id] = -20.0
    bias[tokenizer.never_written] = 6.0  # 若不禁止，写的全是控制词元
    bias[tokenizer.newline_id] = 2.0
    model.embedding.weight[:, 0] = bias
    path = tmp_path_factory.mktemp("checkpoint") / "best.pt"
    checkpoint.save(path, checkpoint.model_contents(model, tokenizer, {}, 3, 4.5, 6.25))
    return path


@pytest.fixture
def writer(trained) -> Writer:
    return loading.load_writer(trained, "cpu", "fp32").writer


@pytest.fixture
def write(trained, capsys):
    """在本进程里运行 inference.py：write(参数…) → (标准输出, 标准错误)。"""

    def call(*argv: str) -> tuple[str, str]:
        capsys.readouterr()
        flags = ["--checkpoint", str(trained), "--device", "cpu", "--dtype", "fp32"]
        if "--max_tokens" not in argv and not {f"--{name}" for name in FIXES_LINES} & set(argv):
            flags += ["--max_tokens", "40"]
        assert inference.main([*flags, *argv]) == 0
        return capsys.readouterr()

    return call


@pytest.fixture
def written(writer, capsys):
    """written(开头, 设置…)：inference.py 写的，不带末尾的换行。"""

    def call(prompt: str, **changes) -> str:
        capsys.readouterr()
        inference.Printer(writer).write(prompt, settings(**changes))
        return capsys.readouterr().out.removesuffix("\n")

    return call


@pytest.fixture
def talk(writer, capsys):
    """talk(行, …) → 各行的标准输出；错误与说明在 talk.err。"""

    class Talk:
        def __init__(self) -> None:
            self.conversation = Conversation(Printer(writer), settings(max_tokens=20))
            self.err = ""

        def __call__(self, line: str) -> str:
            capsys.readouterr()
            if line.startswith(tuple(f"/set {name}" for name in FIXES_LINES)):
                self.conversation.settings.max_tokens = None
            self.conversation.answer(line)
            out, self.err = capsys.readouterr()
            return out

        def error(self, line: str) -> str:
            with pytest.raises(UserError) as caught:
                self.conversation.answer(line)
            assert capsys.readouterr().out == ""
            return str(caught.value)

    return Talk()


@pytest.fixture(scope="session")
def copies(tokenizer, tmp_path_factory) -> Path:
    """一首歌的索引。"""
    folder = tmp_path_factory.mktemp("copies") / "copies"
    CopyIndex.build(["\n".join(LINES)], ["《河岸》谁"], folder, tokenizer.fingerprint, 1)
    return folder
