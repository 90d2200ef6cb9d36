"""写歌的网页：`python webui.py`，在 http://127.0.0.1:7860/。

改、留住、另写、查韵都在网页里；别的程序用 OpenAI 的写法（/v1/completions）。
"""

import asyncio
import errno
import json
import os
import re
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

try:
    import uvicorn
    from starlette.concurrency import run_in_threadpool
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response, StreamingResponse
    from starlette.routing import Route, Router
except ImportError as error:
    print(f"错误：网页还缺 {error.name}：pip install -r requirements-webui.txt -c constraints.txt", file=sys.stderr)
    raise SystemExit(2) from None

import flags
from flags import Flag, constants
from lyrics.copies import CopyIndex
from lyrics.form import LyricsError
from serving.completions import Completion
from serving.guard import Guard, Refused, error_body
from serving.indexing import Indexing
from serving.requests import BadRequest, parse_body
from serving.songs import Desk, Work
from serving.turns import QueueFull, Turn, Turns, while_there
from terminal import Display, UserError, run_script
from training.checkpoint import BEST, CheckpointError
from training.device import DeviceError
from writing.copying import index_of_checkpoint
from writing.kernels import WRITING_DTYPES
from writing.loading import load_writer, open_copies
from writing.writer import Writer

DESCRIPTION = "写歌的网页。载入检查点，在浏览器里写、改、留住、另写；别的程序用 /v1/completions。"
PAGE = Path(__file__).parent / "page"
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
LOCAL = ("127.0.0.1", "localhost", "::1")

FLAGS = [
    Flag("checkpoint", Path(constants.CHECKPOINT_DIR) / BEST, flags.path(), "检查点；架构与分词器都从它读出"),
    Flag("host", "127.0.0.1", flags.text(), "绑在哪个地址；0.0.0.0 让同一个网里的手机也能用，要口令"),
    Flag("port", 7860, flags.whole(0, 65535), "端口；0 为随便一个空着的"),
    Flag("token", None, flags.text(optional=True), "口令；--host 不是本机而没有给，就造一个"),
    Flag("allowed_hosts", None, flags.text(optional=True), "另外许可的主机名，几个用逗号隔开，如 AutoDL 给的域名"),
    Flag("queue", 32, flags.whole(0, 10_000), "一首在写时，至多几位排队"),
    Flag("most_tokens", 2000, flags.whole(1, 100_000), "一首歌的 max_tokens 至多多少"),
    Flag("song_seconds", 300, flags.whole(1, 86_400), "一次至多写多少秒"),
    Flag("device", "auto", flags.text(), "auto、cpu、cuda、cuda:1、mps"),
    Flag("dtype", "auto", flags.one_of("auto", *WRITING_DTYPES), "auto 取这台机器上最快的；int8 只用于 CPU"),
    Flag("decode", "auto", flags.one_of("auto", "fused", "torch"), "CPU 上写的一步：fused 编译成一次调用，torch 照旧"),
    Flag("copy_index", Path(constants.CACHE_DIR) / "copies", flags.path(), "语料的索引，查照抄要用；没有就建"),
]


def main(argv: Sequence[str]) -> int:
    given = flags.parse_flags(FLAGS, argv, "webui.py", DESCRIPTION)
    options = {flag.name: given.get(flag.name, flag.default) for flag in FLAGS}
    if options["token"] and not re.fullmatch("[!-~]+", options["token"]):  # 浏览器的请求头里写不了别的
        raise UserError("--token 只能是英文字母、数字与符号，不带空格")
    places = {name: flags.rooted(options[name], name in given) for name in ("checkpoint", "copy_index")}
    listening = listen(options["host"], options["port"])
    writer, _, _, about = load_writer(
        places["checkpoint"], options["device"], options["dtype"], options["decode"], _tell
    )
    _tell(about)
    indexing = prepare_copies(writer, places["checkpoint"], places["copy_index"])
    public = options["host"] not in LOCAL
    token = options["token"] or (secrets.token_urlsafe(16) if public else None)
    hosts = [name.strip() for name in (options["allowed_hosts"] or "").split(",") if name.strip()]
    turns = Turns(options["queue"], options["song_seconds"])
    desk = Desk(writer, options["most_tokens"], indexing)
    app = Guard(application(desk, turns, places["checkpoint"].stem), token, hosts, public)
    _tell(address(options["host"], listening.getsockname()[1], token))
    if indexing is not None:
        indexing.start()
    server = make_server(app, turns)
    asyncio.run(server.serve([listening]))
    return 128 + server.signal if server.signal else 0


def listen(host: str, port: int) -> socket.socket:
    """先占住端口再载入模型：占不到的，马上说。

    Raises:
        UserError: 端口被占，或绑不了这个地址。
    """
    try:
        family, kind, _, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        if os.name != "nt":  # Windows 上它让别的程序也占得住
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(where)
        listening.listen(128)  # 不先听着，别的进程还占得住同一个端口
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        why = "端口已被占用，可换一个：--port" if taken else error.strerror
        raise UserError(f"开不了 {host}:{port}：{why}") from None
    return listening


def prepare_copies(writer: Writer, checkpoint: Path, folder: Path) -> Indexing | None:
    """读语料的索引；没有的，交还一个去建它的。"""
    writer.copies = open_copies(folder, writer.tokenizer, False)
    if writer.copies is not None:
        return None
    display = Display(sys.stderr)

    def build() -> CopyIndex:
        return index_of_checkpoint(checkpoint, writer.tokenizer, folder, display.line, display.progress)

    return Indexing(writer, build, display.line)


def address(host: str, port: int, token: str | None) -> str:
    """在浏览器里打开哪里；口令在 # 之后，浏览器不把它发出来。"""
    shown = _own_address() if host in ("0.0.0.0", "::") else host
    shown = f"[{shown}]" if ":" in shown else shown
    secret = f"#token={quote(token, safe='')}" if token else ""
    return f"打开 http://{shown}:{port}/{secret}（Ctrl-C 结束）"


def _own_address() -> str:
    """这台机器在网里的地址；不知道时是本机。"""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # UDP 的 connect 不发东西，只选一条路
            return probe.getsockname()[0]
        except OSError:
            return "127.0.0.1"


# ---------------------------------------------------------------------------
# 路由
# ---------------------------------------------------------------------------


def application(desk: Desk, turns: Turns, model: str) -> Any:
    routes = [Route("/healthz", lambda request: JSONResponse({"status": "ok", "waiting": len(turns)}))]
    routes += [Route(name, page) for name, page in pages().items()]
    routes += [Route(f"/api/{work.__name__}", _writes(work, turns), methods=["POST"]) for work in _writing(desk)]
    for answer in (desk.check, desk.lines, desk.rhymes):
        routes.append(Route(f"/api/{answer.__name__}", _answers(answer), methods=["POST"]))
    routes.append(Route("/api/about", lambda request: JSONResponse(desk.about(model))))
    known = {"id": model, "object": "model", "created": 0, "owned_by": "local"}
    routes.append(Route("/v1/models", lambda request: JSONResponse({"object": "list", "data": [known]})))
    routes.append(Route("/v1/models/{name:path}", lambda request: _model(known, request.path_params["name"])))
    routes.append(Route("/v1/completions", _completes(desk, turns, model), methods=["POST"]))
    return Router(routes)


def _model(known: dict[str, Any], name: str) -> Response:
    """
    Raises:
        Refused: 没有这个模型。
    """
    if name != known["id"]:
        raise Refused(404, "没有这个模型")
    return JSONResponse(known)


def pages() -> dict[str, Callable[[Request], Response]]:
    """页面的文件，开头就读好：请求里的路径从不去读文件。"""
    found: dict[str, Callable[[Request], Response]] = {}
    for path in sorted(PAGE.iterdir()):
        if kind := TYPES.get(path.suffix):
            name = "/" if path.name == "index.html" else f"/{path.name}"
            content = path.read_bytes()
            found[name] = lambda request, content=content, kind=kind: Response(content, media_type=kind)  # type: ignore[misc]
    return found


def _writing(desk: Desk) -> list[Callable[[dict[str, Any]], Work]]:
    return [desk.write, desk.more, desk.rest, desk.rewrite]


def _writes(prepare: Callable[[dict[str, Any]], Work], turns: Turns) -> Any:
    """排队去写，写出的一行一个 JSON 送回去。"""

    async def endpoint(request: Request) -> Response:
        try:
            work = await run_in_threadpool(prepare, parse_body(await request.body()))
        except BadRequest as error:
            return JSONResponse({"errors": error.errors}, 400)
        turn = _join(turns, work)
        return Streamed(turn, turns, _json_lines(turn), "application/x-ndjson")

    return endpoint


def _answers(answer: Callable[[dict[str, Any]], dict[str, Any]]) -> Any:
    """当场答的。"""

    async def endpoint(request: Request) -> Response:
        try:
            return JSONResponse(await run_in_threadpool(answer, parse_body(await request.body())))
        except BadRequest as error:
            return JSONResponse({"errors": error.errors}, 400)

    return endpoint


def _completes(desk: Desk, turns: Turns, model: str) -> Any:
    async def endpoint(request: Request) -> Response:
        try:
            body = parse_body(await request.body())
            asked = await run_in_threadpool(Completion, body, desk, model)
        except BadRequest as error:
            field, message = next(iter(error.errors.items()))
            return JSONResponse(error_body(message, 400, field or None), 400)
        turn = _join(turns, asked.work)
        if asked.stream:
            return Streamed(turn, turns, asked.chunks(turn.events), "text/event-stream")
        try:
            found = await while_there(request.receive, asked.whole(turn.events))
        finally:
            turns.leave(turn)
        status, content = found or (499, {})  # 走了的收不到
        return JSONResponse(content, status)

    return endpoint


def _join(turns: Turns, work: Work) -> Turn:
    """
    Raises:
        Refused: 满了。
    """
    try:
        return turns.join(work)
    except QueueFull as error:
        again = {"retry-after": str(error.seconds)}
        raise Refused(429, f"排队的人满了，{error.seconds} 秒后再试", again) from None


async def _json_lines(turn: Turn) -> AsyncIterator[bytes]:
    while (event := await turn.events.get()) is not None:
        yield json.dumps(event, ensure_ascii=False).encode() + b"\n"


class Streamed(StreamingResponse):
    """边写边送；客户走了，他的一次也就让出来。"""

    def __init__(self, turn: Turn, turns: Turns, content: AsyncIterator[bytes], media_type: str) -> None:
        super().__init__(content, media_type=media_type)
        self.turn, self.turns = turn, turns

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await while_there(receive, self.stream_response(send))
        finally:
            self.turns.leave(self.turn)


# ---------------------------------------------------------------------------
# 开与停
# ---------------------------------------------------------------------------


class Server(uvicorn.Server):
    """停的时候先告诉客户；信号的退出码由我们给。"""

    def __init__(self, config: uvicorn.Config, turns: Turns) -> None:
        super().__init__(config)
        self.turns, self.signal = turns, 0

    def handle_exit(self, sig: int, frame: Any) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT  # 再按一次就不等了
        self.should_exit, self.signal = True, sig

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.turns.close()
        await super().shutdown(sockets)


def make_server(app: Any, turns: Turns) -> Server:
    config = uvicorn.Config(
        app,
        ws="none",
        log_level="error",
        access_log=False,
        lifespan="off",
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    return Server(config, turns)


def _leave(code: int) -> None:
    """写到一半的那个线程不等了。"""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _tell(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    run_script(main, UserError, CheckpointError, LyricsError, DeviceError, leave=_leave)
