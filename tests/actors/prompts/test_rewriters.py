"""Rewriters: a tiny language model of the real classes, and a real HTTP server."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from actors.prompts import rewriters
from actors.prompts.rewrite import RewriteError
from actors.prompts.rewriters import LocalRewriter, RemoteRewriter, request_of
from common.errors import ConfigError
from tests.support.chat_server import chat_server, said
from tests.support.tiny_writer import END, tiny_writer

LONG = {"a robot walks": "A silver robot walks over a meadow .", "a zombie runs": "A green zombie runs in the snow ."}


def test_a_request_has_the_instruction_and_the_caption_on_one_line() -> None:
    request = request_of("a robot\n walks")
    assert request.endswith("\n\nShort: a robot walks\nLong:")
    assert 60 <= len(rewriters.INSTRUCTION.rpartition("\nLong: ")[2].split()) <= 120  # the example obeys its own rule


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> LocalRewriter:
    answers = {caption: f"{text} {END}" for caption, text in LONG.items()}
    answers["thinks"] = f"the robot ? </think> A robot thinks . {END}"
    answers["sings"] = "la " * 40
    return LocalRewriter(str(tiny_writer(tmp_path_factory.mktemp("writer"), answers)))


def test_a_model_with_a_chat_template_gets_a_chat(writer: LocalRewriter) -> None:
    assert {caption: writer(caption) for caption in LONG} == LONG


def test_thoughts_are_no_part_of_an_answer(writer: LocalRewriter) -> None:
    assert writer("thinks").strip() == "A robot thinks ."


def test_an_answer_without_an_end_is_refused(writer: LocalRewriter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriters, "ANSWER_TOKENS", 30)
    with pytest.raises(RewriteError, match=r"^the answer does not end within 30 tokens$"):
        writer("sings")


def test_a_base_model_answers_with_its_first_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewriters, "ANSWER_TOKENS", 30)
    answers = {caption: f"{text} \n Short: a robot" for caption, text in LONG.items()}
    base = LocalRewriter(str(tiny_writer(tmp_path, answers, chat=False)))
    assert {caption: base(caption).strip() for caption in LONG} == LONG


def test_a_folder_without_a_model_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^--model .*: cannot be loaded as AutoTokenizer: ") as error:
        LocalRewriter(str(tmp_path))
    assert "\n" not in str(error.value)


def test_a_server_gets_a_greedy_request_with_the_token(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("secret")
    token.chmod(0o600)
    with chat_server(lambda caption: said(LONG[caption])) as server:
        remote = RemoteRewriter(f"{server.url}/v1/", None, token)
        assert remote("a robot walks") == LONG["a robot walks"]
    assert server.asked == [
        {
            "model": "writer",
            "messages": [{"role": "user", "content": request_of("a robot walks")}],
            "temperature": 0,
            "max_tokens": rewriters.ANSWER_TOKENS,
            "authorization": "Bearer secret",
        }
    ]


def test_a_server_of_several_models_needs_a_name() -> None:
    with chat_server(lambda _: said("long"), models=("a", "b")) as server:
        with pytest.raises(ConfigError, match=r"serves a, b; set --served to a model's name$"):
            RemoteRewriter(server.url)
        RemoteRewriter(server.url, "b")("x")
    assert [(body["model"], body["authorization"]) for body in server.asked] == [("b", None)]


def test_a_busy_server_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.web.retries.FIRST_PAUSE", 0.0)
    replies = iter([(503, {}), (429, {}), said("long")])
    with chat_server(lambda _: next(replies)) as server:
        assert RemoteRewriter(server.url)("x") == "long"
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    ("reply", "kind", "message"),
    [
        (said("cut", "length"), RewriteError, r"^the answer does not end within 512 tokens$"),
        ((400, {"error": "too long"}), RewriteError, r'^http.*: 400 Bad Request: \{"error":"too long"\}$'),
        ((401, {"error": "who?"}), ConfigError, r"^http.*: 401 Unauthorized: "),
        ((404, {"error": "no model"}), ConfigError, r"^http.*: 404 Not Found: "),
        ((503, {}), ConfigError, r"^http.*: no answer in 4 attempts: HTTPStatusError"),
        ((200, {"choices": []}), ConfigError, r"^http.*: malformed answer: "),
        ((200, ["x"]), ConfigError, r"^http.*: malformed answer: "),
    ],
)
def test_what_a_server_does_wrong_is_named(reply, kind, message, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.web.retries.FIRST_PAUSE", 0.0)
    with chat_server(lambda _: reply) as server:
        remote = RemoteRewriter(server.url)
        with pytest.raises(kind) as error:
            remote("x")
    assert re.search(message, str(error.value))


def test_an_answer_without_text_is_empty() -> None:
    with chat_server(lambda _: said(None)) as server:
        assert RemoteRewriter(server.url)("x") == ""


def test_an_address_without_a_server_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.web.retries.FIRST_PAUSE", 0.0)
    with chat_server(lambda _: said("")) as server:
        pass
    with pytest.raises(ConfigError, match=r"^http://127.0.0.1:\d+: no answer in 4 attempts: ConnectError"):
        RemoteRewriter(server.url)
    with pytest.raises(ConfigError, match=r"^--url localhost:80: must be http://HOST:PORT or https://HOST:PORT$"):
        RemoteRewriter("localhost:80")


@pytest.mark.parametrize(
    "environment",
    [
        {"HTTP_PROXY": "http://127.0.0.1:9"},
        {"http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.0/8"},
        {"ALL_PROXY": "socks5h://127.0.0.1:9"},
        {"all_proxy": "no address"},
    ],
)
def test_the_proxies_of_the_environment_are_not_asked(environment, monkeypatch):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with chat_server(lambda caption: said("long")) as server:
        assert RemoteRewriter(server.url)("x") == "long"


def test_an_invalid_proxy_is_named():
    with pytest.raises(ConfigError, match=r"^--proxy = 'ftp://x': must be http://HOST:PORT or socks5://HOST:PORT"):
        RemoteRewriter("http://127.0.0.1:9", proxy="ftp://x")
