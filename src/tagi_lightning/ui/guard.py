"""What the server refuses before the page sees it."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; worker-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'self'; object-src 'none'; frame-ancestors 'none'"
)
"""The browser fetches nothing from elsewhere for the page, and no other site embeds it."""


class Guard:
    """Lets through what the page itself asks for.

    Refused are uploads, which the page has none of; what another site's page asks for; and, where the names under
    which the server is reached are known, any other, by which another site may pose as this one (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, hosts: Sequence[str]) -> None:
        """Takes what it stands before.

        Args:
            app: The application.
            hosts: Names under which the server is reached; empty for any.
        """
        self.app, self.hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request or connection."""
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
        elif problem := self.problem(scope):
            await PlainTextResponse(problem, 403)(scope, receive, send)
        else:
            await self.app(scope, receive, _with_policy(send))

    def problem(self, scope: Scope) -> str:
        """Returns why something is refused, empty where it is not."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        if self.hosts and urlsplit(f"//{host}").hostname not in self.hosts:
            return f"This server is not called {host}."
        if origin is not None and urlsplit(origin).netloc != host:
            return "Only this server's own page may ask."
        if scope["type"] == "http" and scope["method"] not in ("GET", "HEAD"):
            return "Nothing can be sent here."
        return ""


def _with_policy(send: Send) -> Send:
    async def send_with_policy(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            headers["Content-Security-Policy"] = POLICY
            headers["Referrer-Policy"] = "no-referrer"
        await send(message)

    return send_with_policy
