"""Messages without meaning are dropped, and no others of the same libraries."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import CogVideoXTransformer3DModel
from transformers import CLIPModel
from transformers.utils import logging as transformers_logging

from common.models.pretrained import load_model
from deploy.logs.library_messages import _FILTERS, MEANINGLESS, drop_meaningless
from tests.support.tiny_encoders import tiny_clip


@pytest.fixture(autouse=True)
def _as_before():
    loggers = {name: logging.getLogger(name) for name in MEANINGLESS}
    before = {name: list(one.filters) for name, one in loggers.items()}
    yield
    for name, one in loggers.items():
        one.filters[:] = before[name]


@pytest.mark.parametrize("name", MEANINGLESS)
def test_only_this_message_is_dropped(name: str) -> None:
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    try:
        drop_meaningless()
        drop_meaningless()
        logger.warning("before %s after", MEANINGLESS[name])
        logger.warning("something else")
        logging.getLogger(f"{name}.other").warning(MEANINGLESS[name])
    finally:
        logger.removeHandler(handler)
    assert said == ["something else", MEANINGLESS[name]]


def test_the_messages_are_those_of_the_libraries(caplog: pytest.LogCaptureFixture) -> None:
    """A cast of a model that keeps no module in float32, as in `douga export`."""
    model: Any = CogVideoXTransformer3DModel(
        num_attention_heads=1, attention_head_dim=16, num_layers=1, text_embed_dim=8
    )
    for name, one in _FILTERS.items():  # another test of this process may have dropped them
        logging.getLogger(name).removeFilter(one)
    library = logging.getLogger("diffusers")
    library.addHandler(caplog.handler)
    try:
        model.to(torch.bfloat16)
        (told,) = caplog.messages
        drop_meaningless()
        model.to(torch.float32)
        assert caplog.messages == [told]
    finally:
        library.removeHandler(caplog.handler)


def test_loading_a_model_draws_no_progress_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, before = tiny_clip(tmp_path), transformers_logging.is_progress_bar_enabled()
    transformers_logging.enable_progress_bar()
    try:
        CLIPModel.from_pretrained(folder)
        assert "Loading weights" in capfd.readouterr().err
        load_model(CLIPModel, folder, folder)
        assert capfd.readouterr().err == ""
    finally:
        (transformers_logging.enable_progress_bar if before else transformers_logging.disable_progress_bar)()
