"""Language models that rewrite captions: a `transformers` folder, or a server with OpenAI's HTTP interface.

```
GET  URL/v1/models             --> {"data": [{"id": NAME}, ...]}           only if no name is given
POST URL/v1/chat/completions   {"model", "messages", "temperature": 0, "max_tokens"}
                               --> {"choices": [{"message": {"content"}, "finish_reason"}]}
Authorization: Bearer TOKEN    if there is a token file
```

Both decode greedily and get the same request, `request_of`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import torch
from tenacity import RetryError
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.prompts.rewrite import RewriteError
from common.errors import ConfigError
from common.models.pretrained import from_pretrained, load_model
from common.web.auth import read_token
from common.web.clients import open_client
from common.web.retries import retrying

INSTRUCTION = """\
You prepare captions for a model that makes short videos of a few seconds from a first frame and a caption. It was \
trained on long captions and follows them best. Turn the short caption into a long one.

- Keep every person, object, action, direction and place of the short caption. Contradict none of them.
- Describe one continuous shot: who is seen, what they look like, how they move from beginning to end, the \
surroundings, the light, the mood, the drawing or film style, and what the camera does.
- State only what can be seen. No sounds, thoughts, names of artists, cuts or remarks about the video.
- Write 60 to 120 words of plain English in one paragraph. Answer with the long caption alone.

Short: a fox crosses a frozen river
Long: A red fox with a thick winter coat steps carefully across a frozen river, from the snowy bank on the left to the \
dark pines on the right. It lowers its head, sniffs at the ice, and walks on with short, even steps while its tail \
sways behind it. Fine snow drifts over the pale blue surface and gathers around its paws. Low morning sun throws long, \
soft shadows and lights the edges of its fur. The camera stays at the height of the fox and glides slowly beside it. \
The mood is quiet and cold, in a detailed, painted style."""
ANSWER_TOKENS = 512  # an answer that is not complete after so many tokens is refused
THOUGHT_END = "</think>"  # reasoning models answer after it
TIMEOUT = 120.0  # seconds per request
ATTEMPTS = 4  # of one request
REFUSED_CAPTION = (400, 413, 422)  # HTTP statuses that concern one caption, such as one that is too long


def request_of(caption: str) -> str:
    """What a model is asked: instruction, example and caption."""
    return f"{INSTRUCTION}\n\nShort: {' '.join(caption.split())}\nLong:"


class LocalRewriter:
    """A `Writer`: a causal language model of transformers, with its chat template if the tokenizer has one."""

    def __init__(self, path: str, device: str = "cpu") -> None:
        """`path` is a folder or hub id; the dtype is the checkpoint's. `ConfigError` if it cannot be loaded."""
        where = f"--model {path}"
        self._tokenizer: Any = from_pretrained(AutoTokenizer, path, where)
        model, _ = load_model(AutoModelForCausalLM, path, where, dtype="auto")
        self._model: Any = model.to(device).eval()

    @torch.inference_mode()
    def __call__(self, caption: str) -> str:
        """The detailed caption. Raises `RewriteError` if the model does not end its answer."""
        tokens = self._tokens(caption).to(self._model.device)
        answer = self._model.generate(**tokens, max_new_tokens=ANSWER_TOKENS, do_sample=False)
        generated = answer[0, tokens["input_ids"].shape[1] :]
        text = self._tokenizer.decode(generated, skip_special_tokens=True).strip()
        if not self._tokenizer.chat_template and "\n" in text:
            return text.partition("\n")[0]  # a base model goes on with captions of its own
        return _answer(text, complete=len(generated) < ANSWER_TOKENS)

    def _tokens(self, caption: str) -> Any:
        if not self._tokenizer.chat_template:
            return self._tokenizer(request_of(caption), return_tensors="pt")
        chat = [{"role": "user", "content": request_of(caption)}]
        return self._tokenizer.apply_chat_template(
            chat,
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            enable_thinking=False,  # templates without this variable ignore it
        )


class RemoteRewriter:
    """A `Writer`: a model behind OpenAI's chat interface, such as one that vLLM serves."""

    def __init__(self, url: str, name: str | None = None, token_file: Path | None = None, proxy: str = "") -> None:
        """`name` is the model's at the server; None: the only one there. Proxies of the environment are not used.

        Raises `ConfigError` if it does not answer.
        """
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url {url}: must be http://HOST:PORT or https://HOST:PORT")
        self._url = url.rstrip("/").removesuffix("/v1")
        headers = {"Authorization": f"Bearer {read_token(token_file)}"} if token_file else {}
        self._client = open_client("--proxy", proxy, TIMEOUT, headers)
        self._through = f" through the proxy {proxy}" if proxy else ""
        self._name = name or self._only_model()

    def __call__(self, caption: str) -> str:
        """The detailed caption.

        Raises `RewriteError` if the server refuses this caption or cuts the answer, `ConfigError` if it does not answer
        or denies access.
        """
        messages = [{"role": "user", "content": request_of(caption)}]
        body = {"model": self._name, "messages": messages, "temperature": 0, "max_tokens": ANSWER_TOKENS}
        reply = self._request("POST", "/v1/chat/completions", json=body)
        try:
            (choice,) = reply["choices"]
            text, reason = str(choice["message"]["content"] or ""), choice.get("finish_reason")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ConfigError(f"{self._url}: malformed answer: {error!r}") from None
        return _answer(text, complete=reason != "length")

    def _only_model(self) -> str:
        reply = self._request("GET", "/v1/models")
        try:
            names = [str(model["id"]) for model in reply["data"]]
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{self._url}: malformed answer: {error!r}") from None
        if len(names) != 1:
            raise ConfigError(f"{self._url}: serves {', '.join(names) or 'nothing'}; set --served to a model's name")
        return names[0]

    def _request(self, method: str, path: str, **body: Any) -> Any:
        """The JSON of the first successful response."""
        try:
            return retrying(ATTEMPTS)(self._once, method, path, **body).json()
        except RetryError as error:
            cause = error.last_attempt.exception()
            raise ConfigError(f"{self._url}: no answer{self._through} in {ATTEMPTS} attempts: {cause!r}") from None
        except httpx.HTTPStatusError as error:
            answer = error.response
            message = (
                f"{answer.url}: {answer.status_code} {answer.reason_phrase}: {' '.join(answer.text.split())[:200]}"
            )
            raise (RewriteError if answer.status_code in REFUSED_CAPTION else ConfigError)(message) from None
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            raise ConfigError(f"{self._url}: is not an OpenAI-compatible server: {error}") from None

    def _once(self, method: str, path: str, **body: Any) -> httpx.Response:
        return self._client.request(method, f"{self._url}{path}", **body).raise_for_status()


def _answer(text: str, complete: bool) -> str:
    if not complete:
        raise RewriteError(f"the answer does not end within {ANSWER_TOKENS} tokens")
    return text.rpartition(THOUGHT_END)[2]
