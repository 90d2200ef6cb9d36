"""全部测试共用的准备。"""

from pathlib import Path

import pytest
import torch
from tiny import TINY, write_corpus

import train


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
