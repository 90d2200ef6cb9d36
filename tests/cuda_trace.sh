#!/usr/bin/env bash
# 没有显卡，也把训练与写歌的每一步在 cuda 设备上走一遍：CUDA 版的 torch，假的卡，假的张量（见 tests/cuda_trace.py）。
# 手动运行，不在 CI 里：第一次要在仓库之外建一个环境，下载几个 GB。要 Linux、gcc。
# 用法：bash tests/cuda_trace.sh [pytest 的参数…]；再跑时 CUDA_TRACE_ENV=打印出的文件夹 就不必重装，用完自己删。
set -euo pipefail
cd "$(dirname "$0")/.."
environment="${CUDA_TRACE_ENV:-$(mktemp -d)}"
echo "环境：$environment"
if [ ! -e "$environment/bin/activate" ]; then
    "${PYTHON:-python3}" -m venv "$environment"
    sed -E 's/^torch>=/torch==/; s/^(torch==[0-9.]+).*/\1/' requirements.txt > "$environment/oldest.txt" # PyPI 上的就是 CUDA 版
    "$environment/bin/python" -m pip install -q -r "$environment/oldest.txt" pytest
fi
card="$environment/card"
mkdir -p "$card"
gcc -shared -fPIC -Wl,-soname,libcuda.so.1 -o "$card/libcuda.so.1" tests/cuda_trace.c
LD_PRELOAD="$card/libcuda.so.1" LD_LIBRARY_PATH="$card" \
    "$environment/bin/python" -m pytest -p no:cacheprovider --noconftest -q tests/cuda_trace.py "$@"
