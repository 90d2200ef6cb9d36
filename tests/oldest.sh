#!/usr/bin/env bash
# 各依赖取 requirements*.txt 的下限（torch 2.11 …），在仓库之外建一个环境，运行全部测试。
# 手动运行，不在 CI 里：要下载几个 GB。下限的 numpy 没有 Python 3.13 以上的，那里用 PYTHON=python3.11。
# 用法：bash tests/oldest.sh [pytest 的参数…]；环境留在打印出的文件夹里，用完自己删。
set -euo pipefail
cd "$(dirname "$0")/.."
environment="$(mktemp -d)"
echo "环境：$environment"
"${PYTHON:-python3}" -m venv "$environment"
. "$environment/bin/activate"
sed -nE 's/^([A-Za-z0-9-]+)>=([0-9.]+).*/\1==\2/p' requirements*.txt > "$environment/oldest.txt"
python -m pip install -r requirements-dev.txt -c "$environment/oldest.txt"
python -m pytest -n 2 -m "not llama" "$@"
