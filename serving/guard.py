"""门口：谁能进来，多大的东西能进来；每个回应带上的规矩。"""

import hmac
import ipaddress
import json
from collections.abc import Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from serving.turns import told

MOST_BYTES = 256 * 1024

HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-store",
}


class Refused(Exception):
    """不放进来：状态码与一句话。"""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


class Guard:
    """包在应用外面的一层（ASGI）：查 Host、Origin、口令、大小；里面出的错变成带编号的 500。

    Args:
        token: 口令；None 为不用。
        hosts: 另外许可的主机名。
        public: 绑在回环之外的地址上：Host 是 IP 地址的都许可（改绑域名的攻击用的总是域名）。
    """

    def __init__(self, app: Any, token: str | None, hosts: Collection[str], public: bool) -> None:
        self.app, self.token, self.public = app, token, public
        self.hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        begun = False

        async def sending(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                extra = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        try:
            received = await self._admit(scope, receive)
            scope["app"] = self.app  # 有它，路由遇到 404、405 就抛出来，不自己答
            await self.app(scope, received, sending)
        except Refused as refused:
            await _answer(sending, refused)
        except HTTPException as error:
            told_what = "没有这个地址" if error.status_code == 404 else "这个地址不这么用"
            await _answer(sending, Refused(error.status_code, told_what, dict(error.headers or {})))
        except ClientDisconnect:
            pass
        except Exception as error:
            message = told(error)
            if not begun:
                await _answer(sending, Refused(500, message))

    async def _admit(self, scope: Any, receive: Any) -> Any:
        """
        Raises:
            Refused: 主机、来源、口令、大小或类型不对。
        """
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        if not self._known(_hostname(host)):
            raise Refused(403, "不认得的主机名；要许可它，用 --allowed_hosts")
        origin = headers.get("origin")
        if origin is not None and urlsplit_host(origin) != host.lower():
            name = _hostname(urlsplit_host(origin))
            if name not in self.hosts - {"localhost"}:
                raise Refused(403, "别的网站来的请求；要许可它，用 --allowed_hosts")
        if self.token and scope["path"].startswith(("/api/", "/v1/")):
            given = headers.get("authorization", "").removeprefix("Bearer ")
            if not hmac.compare_digest(given.encode("latin-1"), self.token.encode()):
                raise Refused(401, "口令不对：地址在运行 webui.py 的终端里", {"www-authenticate": "Bearer"})
        if scope["method"] != "POST":
            return receive
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > MOST_BYTES:
            raise Refused(413, f"太长：至多 {MOST_BYTES // 1024} KiB")
        if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
            raise Refused(415, "只收 application/json")
        return _limited(receive)

    def _known(self, name: str) -> bool:
        if name in self.hosts:
            return True
        try:
            address = ipaddress.ip_address(name.strip("[]"))
        except ValueError:
            return False
        return self.public or address.is_loopback


def _limited(receive: Any) -> Any:
    """没有写明长短的，收多了也不收。"""
    size = 0

    async def receiving() -> Any:
        nonlocal size
        message = await receive()
        size += len(message.get("body", b""))
        if size > MOST_BYTES:
            raise Refused(413, f"太长：至多 {MOST_BYTES // 1024} KiB")
        return message

    return receiving


def urlsplit_host(origin: str) -> str:
    """来源 → `主机:端口`；写法不对的是空的。"""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _hostname(host: str) -> str:
    """`主机:端口` → 主机，小写；IPv6 的方括号留着。"""
    name = host.lower()
    return name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]


def error_body(message: str, status: int, field: str | None = None) -> dict[str, Any]:
    """OpenAI 的写法。"""
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        status, "server_error" if status >= 500 else "invalid_request_error"
    )
    return {"error": {"message": message, "type": kind, "param": field, "code": None}}


async def _answer(send: Any, refused: Refused) -> None:
    body = json.dumps(error_body(str(refused), refused.status), ensure_ascii=False).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refused.headers}
    start = {"type": "http.response.start", "status": refused.status}
    await send({**start, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]})
    await send({"type": "http.response.body", "body": body})
