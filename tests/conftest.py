"""全部测试共用的准备。"""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """测试里的张量极小，多线程只会互相等待：两核的机器上一个词元 0.5 毫秒变成几十毫秒。"""
    torch.set_num_threads(1)
