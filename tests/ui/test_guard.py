import pytest

from tagi_lightning.ui.serving import is_loopback, settings

pytest.importorskip("streamlit", reason="the page needs the extra [ui]")
guard = pytest.importorskip("tagi_lightning.ui.guard")


def problem(hosts=("localhost", "127.0.0.1"), kind="http", method="GET", **headers):
    scope = {"type": kind, "headers": [(name.encode(), value.encode()) for name, value in headers.items()]}
    return guard.Guard(None, hosts).problem(scope | ({"method": method} if kind == "http" else {}))


@pytest.mark.parametrize("host", ["localhost:8501", "127.0.0.1", "LOCALHOST:1"])
def test_the_page_itself_may_ask(host):
    assert problem(host=host) == ""
    assert problem(host=host, origin=f"http://{host}") == ""
    assert problem(kind="websocket", host=host, origin=f"http://{host}") == ""


@pytest.mark.parametrize("kind", ["http", "websocket"])
def test_no_other_site_may(kind):
    assert "own page" in problem(kind=kind, host="localhost:8501", origin="http://elsewhere.example")
    assert "own page" in problem(kind=kind, host="localhost:8501", origin="http://localhost:8502")
    assert "own page" in problem(kind=kind, host="localhost:8501", origin="null")
    assert "not called" in problem(kind=kind, host="elsewhere.example", origin="http://elsewhere.example")
    assert "not called" in problem(kind=kind)


def test_under_every_address_any_name_is_its_own_and_other_sites_are_still_refused():
    assert problem(hosts=(), host="machine.example") == ""
    assert "own page" in problem(hosts=(), host="machine.example", origin="http://elsewhere.example")


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_nothing_can_be_sent(method):
    assert "Nothing can be sent" in problem(method=method, host="localhost")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        *(("localhost", True), ("127.0.0.1", True), ("127.8.8.8", True), ("::1", True)),
        *(("0.0.0.0", False), ("::", False), ("10.0.0.1", False), ("machine.example", False)),
    ],
)
def test_an_address_is_of_this_machine_alone_or_not(host, expected):
    assert is_loopback(host) is expected


def test_streamlit_knows_every_option_that_is_set():
    from streamlit import config

    known = config.get_config_options()
    assert settings("127.0.0.1", 1).keys() <= known.keys()
