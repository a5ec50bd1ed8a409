"""Authentication of our web servers: addresses, hosts, tokens, cookies, sizes."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient

from common.errors import ConfigError
from common.web.auth import PAGE_BYTES, listen, page_app, read_token

TOKEN = "correct horse battery"


def app(folder: Path, token: str = "") -> FastAPI:
    """A page, and an answer that says how many bytes were posted."""
    (folder / "index.html").write_text("<p>open</p>")
    (folder / "page.css").write_text("p { }")
    made = page_app("test", folder, token)

    @made.post("/api/size")
    async def size(request: Request) -> int:
        return len(await request.body())

    return made


def client(folder: Path, token: str = "", host: str = "127.0.0.1") -> TestClient:
    return TestClient(app(folder, token), base_url=f"http://{host}")


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.5", "::"])
def test_off_loopback_a_token_is_needed(host):
    with pytest.raises(ConfigError, match=r"off loopback a token is needed.*DOUGA_TOKEN or --token-file"):
        listen(host, 0, "")


def test_addresses_that_are_served():
    for host, token in (("127.0.0.1", ""), ("localhost", ""), ("0.0.0.0", TOKEN)):
        with listen(host, 0, token) as listening:
            assert socket.create_connection(("127.0.0.1", listening.getsockname()[1]), timeout=10).close() is None


def test_unavailable_addresses_are_refused():
    with listen("127.0.0.1", 0, "") as taken, pytest.raises(ConfigError, match="cannot serve there"):
        listen("127.0.0.1", taken.getsockname()[1], "")
    with pytest.raises(ConfigError, match="--port 70000: allowed are 0 to 65535"):
        listen("127.0.0.1", 70000, "")
    with pytest.raises(ConfigError, match=r"--host example\.org: an IP address is needed"):
        listen("example.org", 0, "")


@pytest.mark.parametrize(
    ("host", "status"),
    [("127.0.0.1:8710", 200), ("localhost", 200), ("[::1]:8710", 200), ("evil.example", 400), ("10.0.0.5", 400),
     ("127.0.0.1.evil.example", 400)],
)  # fmt: skip
def test_without_a_token_only_loopbacks_names_are_served(tmp_path, host, status):
    there = client(tmp_path)
    assert there.post("/api/size", headers={"Host": host}).status_code == status
    assert there.get("/", headers={"Host": host}).status_code == status


def test_with_a_token_only_the_page_is_open(tmp_path):
    there = client(tmp_path, TOKEN, "10.0.0.5")
    assert (there.get("/").text, there.get("/page.css").status_code) == ("<p>open</p>", 200)
    for given in (None, "Bearer wrong", f"Basic {TOKEN}", "Bearer", f"Bearer {TOKEN}x"):
        headers = {} if given is None else {"Authorization": given}
        assert there.post("/api/size", headers=headers).status_code == 401
        assert there.get("/nothing", headers=headers).status_code == 401
    assert there.post("/api/size", headers={"Authorization": f"Bearer {TOKEN}"}).json() == 0


def test_a_login_gives_a_cookie_that_is_not_the_token(tmp_path):
    there = client(tmp_path, TOKEN, "10.0.0.5")
    assert there.post("/api/login", json={"token": "wrong"}).status_code == 401
    assert there.post("/api/size").status_code == 401
    cookie = there.post("/api/login", json={"token": TOKEN}).headers["set-cookie"]
    assert TOKEN not in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert there.post("/api/size").status_code == 200
    name, _, value = cookie.partition(";")[0].partition("=")
    assert there.post("/api/size", headers={"Cookie": f"{name}={value}x"}).status_code == 401


def test_two_servers_on_one_machine_have_cookies_of_different_names(tmp_path):
    names = [
        client(tmp_path, token).post("/api/login", json={"token": token}).headers["set-cookie"].partition("=")[0]
        for token in (TOKEN, "another horse battery")
    ]
    assert names[0] != names[1]


def test_large_bodies_are_refused_with_and_without_a_stated_length(tmp_path):
    there = client(tmp_path)
    assert there.post("/api/size", content=b"x" * PAGE_BYTES).json() == PAGE_BYTES
    assert there.post("/api/size", content=b"x" * (PAGE_BYTES + 1)).status_code == 413
    assert there.post("/api/size", content=iter([b"x" * 1000] * 66)).status_code == 413


def test_every_answer_says_what_a_browser_may_do_with_it(tmp_path):
    there = client(tmp_path, TOKEN)
    for answer in (there.get("/"), there.post("/api/size"), there.get("/nothing")):
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert answer.headers["x-content-type-options"] == "nosniff"
    assert there.post("/api/login", json={"token": TOKEN}).headers["cache-control"] == "no-store"


def test_token_files_that_are_refused(tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n".replace(" ", "-"))
    file.chmod(0o600)
    assert read_token(file) == "correct-horse-battery"
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="group or others may use it; chmod 600"):
        read_token(file)
    with pytest.raises(ConfigError, match="cannot read the token"):
        read_token(tmp_path / "nowhere")
