"""Serves the published AnimeReward script to douga, from a separate Python environment. See README.md in this folder.

The script (``reward/reward_infer.py`` of Index-anisora) loads seven models, scores one clip whose paths are hard-coded,
and exits. This server splits it at the first assignment to ``video_prompt``: the part before runs once, the part after
it once per clip, with that clip's paths. The script is neither changed on disk nor copied.

```
POST /score (mp4, PNG, text) --> files in a scratch folder --> second part --> results_dict --> 100 x each value
```
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import json
import math
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from hashlib import blake2b
from pathlib import Path
from threading import Lock
from typing import Annotated, Any

import uvicorn
from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from starlette.responses import JSONResponse

NAME = "animereward"
OUTPUTS = {  # the script's names -> douga's names of AnimeReward's dimensions
    "visual_smooth": "smoothness",
    "visual_motion": "motion",
    "visual_quality": "appeal",
    "text-video_consist": "text",
    "img-video_consist": "image",
    "character_consist": "character",
}
CASE = ("video_prompt", "img_path", "video_path", "output_path")  # the variables that describe the clip
SAVED = "character_save"  # the script writes the masks of a clip to SAVED/NAME
MEBIBYTE = 1 << 20


class Script:
    """The published script with its models loaded. Changes the process's working directory to the script's folder."""

    def __init__(self, file: Path) -> None:
        body = ast.parse(file.read_text("utf-8"), str(file)).body
        cut = next((i for i, one in enumerate(body) if _assigned(one) == CASE[0]), None)
        if cut is None:
            sys.exit(f"{file}: no line `{CASE[0]} = ...`; is this AnimeReward's reward_infer.py?")
        self._folder = file.resolve().parent
        self._names: dict[str, Any] = {"__name__": NAME, "__file__": str(file)}
        self._case = self._compiled([one for one in body[cut:] if _assigned(one) not in CASE])
        os.chdir(self._folder)
        sys.path.insert(0, str(self._folder))
        self.digest = _digest(file.resolve())
        exec(self._compiled(body[:cut]), self._names)

    def score(self, text: str, image: bytes | None, clip: bytes) -> dict[str, float]:
        """Returns the six scores of one clip: the script's values times 100.

        Raises `ValueError` without an image, and whatever the script raises.
        """
        if image is None:
            raise ValueError("AnimeReward needs the first frame")
        with _scratch() as folder:
            video, picture = folder / f"{folder.name}.mp4", folder / "first.png"
            video.write_bytes(clip)
            picture.write_bytes(image)
            self._names |= dict(zip(CASE, (text, str(picture), str(video), str(folder)), strict=True))
            self._names.pop("results_dict", None)
            try:
                with self._without_gradients():
                    exec(self._case, self._names)
            finally:
                shutil.rmtree(self._folder / SAVED / folder.name, ignore_errors=True)
        found = self._names["results_dict"]
        return {ours: 100.0 * float(found[theirs]) for theirs, ours in OUTPUTS.items()}

    def _without_gradients(self) -> Any:
        """The script leaves gradients enabled in places, so memory would grow with every clip."""
        return self._names["torch"].no_grad() if "torch" in self._names else contextlib.nullcontext()

    def _compiled(self, statements: list[ast.stmt]) -> Any:
        return compile(ast.Module(statements, []), str(self._folder / NAME), "exec")


def _assigned(statement: ast.stmt) -> str:
    """Returns the name that a statement assigns to, if it is an assignment to a single name, else an empty string."""
    targets = statement.targets if isinstance(statement, ast.Assign) else []
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else ""


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    # The script names its mask folder after the clip, up to the first dot: the name must be unique and have no dots.
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / f"clip-{secrets.token_hex(8)}"
        folder.mkdir()
        yield folder


def _digest(script: Path) -> str:
    """Returns a digest of the script, and of the names and sizes of the checkpoints in its folder."""
    whole = blake2b(script.read_bytes(), digest_size=16)
    for file in sorted(script.parent.rglob("*")):
        if file.suffix in (".pth", ".safetensors", ".bin", ".pt"):
            whole.update(f"{file.relative_to(script.parent)}|{file.stat().st_size}\n".encode())
    return whole.hexdigest()


def application(script: Script, token: str, most_bytes: int) -> FastAPI:
    """Returns the web application, with the protocol of douga's `rewarders/judges/remote.py`.

    With an empty `token` requests need no authentication. Requests above `most_bytes` get 413.
    """
    app, lock = FastAPI(docs_url=None, redoc_url=None, openapi_url=None), Lock()

    @app.middleware("http")
    async def guard(request: Request, call_next: Any) -> Any:
        given = request.headers.get("authorization", "").encode()
        if token and request.url.path != "/health" and not secrets.compare_digest(given, f"Bearer {token}".encode()):
            return JSONResponse({"detail": "a bearer token is needed"}, 401)
        length = request.headers.get("content-length", "")
        if request.method == "POST" and not (length.isdigit() and int(length) <= most_bytes):
            return JSONResponse({"detail": f"a length of at most {most_bytes} bytes is needed"}, 413)
        return await call_next(request)

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/judges")
    def judges() -> dict[str, Any]:
        return {NAME: {"outputs": list(OUTPUTS.values()), "digest": script.digest}}

    @app.post("/score")
    def score(
        request: Annotated[str, Form()],
        clips: Annotated[list[UploadFile], File()],
        images: Annotated[list[UploadFile] | None, File()] = None,
    ) -> dict[str, Any]:
        try:
            asked = json.loads(request)["prompts"]
            pictures = iter([one.file.read() for one in images or []])
            cases = [(one["text"], next(pictures) if one.get("image") else None) for one in asked]
        except (ValueError, KeyError, TypeError, StopIteration):
            raise HTTPException(422, "request: {'prompts': [{'text', 'image'}, ...]} is needed") from None
        if len(cases) != len(clips):
            raise HTTPException(422, f"{len(cases)} prompts, {len(clips)} clips")
        with lock:
            found = [_opinion(script, *case, clip.file.read()) for case, clip in zip(cases, clips, strict=True)]
        scores, problems = zip(*found, strict=True)
        return {"digest": script.digest, "scores": scores, "problems": problems}

    return app


def _opinion(script: Script, text: str, image: bytes | None, clip: bytes) -> tuple[dict[str, float] | None, str | None]:
    """Returns (scores, None), or (None, the reason). A clip on which the script fails must not stop the server."""
    try:
        scores = script.score(text, image, clip)
    except Exception as error:
        return None, f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
    broken = [name for name, value in scores.items() if not math.isfinite(value)]
    return (None, f"{', '.join(broken)}: no finite score") if broken else (scores, None)


def main() -> None:
    """Loads the script, then serves until interrupted."""
    parser = argparse.ArgumentParser(description="Serve the published AnimeReward script to douga.")
    parser.add_argument("script", type=Path, help="reward/reward_infer.py of Index-anisora")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--port", type=int, default=8100, help="port to listen on (default: 8100)")
    parser.add_argument("--token-file", type=Path, help="file with the clients' token; required off loopback")
    parser.add_argument("--most-mb", type=int, default=256, help="maximum size of a request, MiB (default: 256)")
    given = parser.parse_args()
    token = given.token_file.read_text("utf-8").strip() if given.token_file else ""
    if not token and not given.host.startswith("127."):
        parser.error(f"--host {given.host}: off loopback a token is needed; give --token-file")
    if not given.script.is_file():
        parser.error(f"{given.script}: no such file")
    app = application(Script(given.script), token, given.most_mb * MEBIBYTE)
    uvicorn.run(app, host=given.host, port=given.port, log_level="info")


if __name__ == "__main__":
    main()
