"""What text encoders read of captions: how many are too long for one, and how much of them it does not know.

Encoders cut captions silently: T5 of CogVideoX after 226 tokens, CLIP after 77, ImageReward's BLIP after 35. Two
captions that differ only behind that give the same clip or the same score. Characters that a tokenizer does not know
become one token, ``<unk>``, which says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from common.errors import ConfigError
from common.models.cogvideox import ModelFolder

CHUNK = 1000  # captions that are tokenized at once
SHOWN = 60  # characters of a caption that a message shows

Caption = tuple[str, str]  # where it is, and its text


@dataclass(frozen=True)
class TextReader:
    """A text encoder, as far as it decides what is read of a caption."""

    name: str
    tokenizer: Any
    length: int  # tokens, with those that are added to every caption

    @property
    def room(self) -> int:
        """The tokens of a caption that are read."""
        return self.length - len(self.tokenizer("").input_ids)

    def tokens(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """The token ids of each text, without added ones, not cut."""
        for start in range(0, len(texts), CHUNK):
            chunk = list(texts[start : start + CHUNK])
            yield from self.tokenizer(chunk, add_special_tokens=False, verbose=False).input_ids


def policy_reader(model: ModelFolder) -> TextReader:
    """The text encoder of a model. Raises `ConfigError` if its tokenizer cannot be loaded."""
    return TextReader("the policy's text encoder", model.load_tokenizer(), model.max_text_length)


def report_captions(file: str, captions: Sequence[Caption], policy: TextReader, tell: Callable[[str], None]) -> None:
    """Tells how many captions of a file the policy cuts or does not know. `ConfigError` if it knows none of them."""
    tokens = list(policy.tokens([text for _, text in captions]))
    _report_cut(file, captions, tokens, policy, tell)
    _report_unknown(file, captions, tokens, policy, tell)


def report_cut(file: str, captions: Sequence[Caption], reader: TextReader, tell: Callable[[str], None]) -> None:
    """Tells how many captions of a file are longer than `reader` reads, and what is lost of the first of them."""
    _report_cut(file, captions, list(reader.tokens([text for _, text in captions])), reader, tell)


def _report_cut(
    file: str,
    captions: Sequence[Caption],
    tokens: Sequence[list[int]],
    reader: TextReader,
    tell: Callable[[str], None],
) -> None:
    room = reader.room
    cut = [place for place, ids in enumerate(tokens) if len(ids) > room]
    if not cut:
        return
    (where, _), ids = captions[cut[0]], tokens[cut[0]]
    texts = len({captions[place][1] for place in cut})
    alike = texts - len({tuple(tokens[place][:room]) for place in cut})
    same = f"; {alike + 1} of them differ only in what is lost" if alike else ""
    tell(
        f"{file}: {len(cut)} of {len(captions)} captions are longer than {reader.name} reads ({reader.length} tokens); "
        f"first {where}: {len(ids) + reader.length - room} tokens, lost is "
        f"{_short(reader.tokenizer.decode(ids[room:]))!r}{same}"
    )


def _report_unknown(
    file: str,
    captions: Sequence[Caption],
    tokens: Sequence[list[int]],
    reader: TextReader,
    tell: Callable[[str], None],
) -> None:
    """Counts tokens with a letter or digit: those of spaces and punctuation are known to every tokenizer."""
    unknown = _unknown_token(reader.tokenizer)
    if unknown is None:
        return
    words = {id: any(map(str.isalnum, reader.tokenizer.convert_ids_to_tokens(id))) for ids in tokens for id in {*ids}}
    lost = [ids.count(unknown) for ids in tokens]
    read = [sum(words[id] for id in ids if id != unknown) for ids in tokens]
    total = sum(lost) + sum(read)
    if not sum(lost):
        return
    place = next(place for place, count in enumerate(lost) if count)
    first = f"first {captions[place][0]}: {_short(captions[place][1])!r}"
    if not sum(read):
        raise ConfigError(f"{file}: {reader.name} knows no word of any caption; {first}")
    blank = sum(bool(missed) and not known for missed, known in zip(lost, read, strict=True))
    tell(
        f"{file}: {reader.name} does not know {100 * sum(lost) / total:.2g} % of the words, in "
        f"{sum(map(bool, lost))} of {len(captions)} captions, {blank} of them whole; {first}"
    )


def _unknown_token(tokenizer: Any) -> int | None:
    """The id of the unknown token; None for tokenizers that know every byte, whose unknown token is their end token."""
    found = tokenizer.unk_token_id
    return None if found in (None, tokenizer.eos_token_id, tokenizer.bos_token_id) else found


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
