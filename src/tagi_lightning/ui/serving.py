"""The server of the page: Streamlit without statistics, file watching and uploads."""

from __future__ import annotations

import ipaddress
from pathlib import Path

from tagi_lightning.ui.workbench import Workbench

LOOPBACK = ("localhost", "127.0.0.1", "::1")
ANY = ("0.0.0.0", "::")

_served: list[Workbench] = []


def served() -> Workbench:
    """Returns the workbench that this process serves."""
    return _served[-1]


def is_loopback(host: str) -> bool:
    """Tells whether an address is reached from this machine alone."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def serve(bench: Workbench, host: str, port: int) -> None:
    """Serves the page until the process is told to end.

    Args:
        bench: What the page does.
        host: Address to listen on.
        port: Port to listen on.
    """
    from starlette.middleware import Middleware
    from streamlit import App

    from tagi_lightning.ui.guard import Guard

    _served.append(bench)
    hosts = () if host in ANY else (*LOOPBACK, host)
    app = App(Path(__file__).with_name("page.py"), middleware=[Middleware(Guard, hosts=hosts)])
    app.run(config=settings(host, port))


def settings(host: str, port: int) -> dict[str, object]:
    """Returns Streamlit's options; those of the user's own files do not come before them."""
    return {
        "server.address": host,
        "server.port": port,
        "server.headless": True,
        "server.fileWatcherType": "none",
        "server.enableStaticServing": False,
        "server.maxMessageSize": 4,
        "server.maxUploadSize": 1,
        "browser.gatherUsageStats": False,
        "runner.magicEnabled": False,
        "client.toolbarMode": "minimal",
        "client.showErrorDetails": "none",
        "theme.primaryColor": "#3949ab",
    }
