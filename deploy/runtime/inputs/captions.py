"""Says at the start what the policy and the rewards do not read of a run's captions, and which prompts are repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from actors.prompts.crops import report_crops
from actors.prompts.repetitions import report_repetitions
from actors.prompts.source import FilePrompts, PromptSource
from common.config import RunConfig
from common.data.offline_pairs import OfflinePairs
from common.models.captions import Caption, CaptionReader, policy_reader, report_captions, report_cut, short
from common.models.cogvideox import open_model

Tell = Callable[[str], None]


def report_run(config: RunConfig, prompts: PromptSource, pairs: OfflinePairs | None, tell: Tell) -> None:
    """Tells of captions that encoders cut or do not know, one line for each file and encoder, and of repeated prompts.

    Raises `ConfigError` if the policy knows no word of a file.
    """
    files = [*_of_file(prompts), *_of_pairs(pairs)]
    if isinstance(prompts, FilePrompts):
        report_repetitions(str(prompts.file), prompts.rows, tell)
        report_crops(str(prompts.file), prompts.rows, (config.model.height, config.model.width), tell)
    if not files:
        return
    policy = policy_reader(open_model(config.model.path))
    for file, captions in files:
        report_captions(file, captions, policy, tell)
    if config.reward.path == "toon" and config.samples:
        for file, captions in _of_file(prompts):
            _report_actions(file, captions, tell)
    for reader in _rewards(config):
        for file, captions in files:
            report_cut(file, captions, reader, tell)


def _rewards(config: RunConfig) -> list[CaptionReader]:
    if not config.samples or not (config.reward.judges or config.reward.path not in ("", "toon")):
        return []
    from rewarders.captions import text_readers  # noqa: PLC0415 - transformers' models take seconds

    return list(text_readers(config.reward))


def _report_actions(file: str, captions: Sequence[Caption], tell: Tell) -> None:
    """Tells how many captions say nothing to the embedded heads, which read only words of actions."""
    from rewarders.toon_heads.network import bag_of_words, vocabulary  # noqa: PLC0415 - torch

    known = bag_of_words([text for _, text in captions]).any(1).tolist()
    none = [caption for caption, some in zip(captions, known, strict=True) if not some]
    if none:
        where, text = none[0]
        tell(
            f"{file}: the toon heads motion and text know no word of {len(none)} of {len(captions)} captions "
            f"(they know {', '.join(vocabulary())}); first {where}: {short(text)!r}"
        )


def _of_file(prompts: PromptSource) -> list[tuple[str, list[Caption]]]:
    if not isinstance(prompts, FilePrompts):
        return []
    return [(str(prompts.file), [(f"line {row.line}", row.text) for row in prompts.rows])]


def _of_pairs(pairs: OfflinePairs | None) -> list[tuple[str, list[Caption]]]:
    if pairs is None:
        return []
    texts = {(one.clip.name, one.text): None for pair in pairs.pairs for one in pair.clips}
    return [(str(pairs.place), list(texts))]
