"""What text encoders read of captions: how many are too long for one, and how much of them it does not know.

Encoders cut captions silently: T5 of CogVideoX after 226 tokens, CLIP after 77, ImageReward's BLIP after 35. Two
captions that differ only behind that give the same clip or the same score. Characters that a tokenizer does not know
become one token, ``<unk>``, which says nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from common.errors import ConfigError
from common.models.cogvideox import ModelFolder

CHUNK = 1000  # captions that are tokenized at once
SHOWN = 60  # characters of a caption that a message shows

Caption = tuple[str, str]  # where it is, and its text


@dataclass(frozen=True)
class Cut:
    """A caption that is longer than an encoder reads."""

    tokens: int  # of the whole caption, with those that are added to every caption
    read: str
    lost: str


class CaptionReader(Protocol):
    """What cuts captions, here or on a judge server."""

    @property
    def name(self) -> str:
        """What messages call it."""
        ...

    @property
    def length(self) -> int:
        """The tokens that it reads, with those that are added to every caption."""
        ...

    def cuts(self, texts: Sequence[str]) -> list[Cut | None]:
        """What is lost of each text; None if it is read whole."""
        ...


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

    def cuts(self, texts: Sequence[str]) -> list[Cut | None]:
        """See `CaptionReader`."""
        return self.cuts_of(self.tokens(texts))

    def cuts_of(self, tokens: Iterable[list[int]]) -> list[Cut | None]:
        """`cuts` of texts whose `tokens` are known."""
        room, decode = self.room, self.tokenizer.decode
        return [
            Cut(len(ids) + self.length - room, decode(ids[:room]), decode(ids[room:])) if len(ids) > room else None
            for ids in tokens
        ]


def policy_reader(model: ModelFolder) -> TextReader:
    """The text encoder of a model. Raises `ConfigError` if its tokenizer cannot be loaded."""
    return TextReader("the policy's text encoder", model.load_tokenizer(), model.max_text_length)


def report_captions(file: str, captions: Sequence[Caption], policy: TextReader, tell: Callable[[str], None]) -> None:
    """Tells how many captions of a file the policy cuts or does not know. `ConfigError` if it knows none of them."""
    tokens = list(policy.tokens([text for _, text in captions]))
    _report_cut(file, captions, policy.cuts_of(tokens), policy, tell)
    _report_unknown(file, captions, tokens, policy, tell)


def report_cut(file: str, captions: Sequence[Caption], reader: CaptionReader, tell: Callable[[str], None]) -> None:
    """Tells how many captions of a file are longer than `reader` reads, and what is lost of the first of them."""
    _report_cut(file, captions, reader.cuts([text for _, text in captions]), reader, tell)


def _report_cut(
    file: str,
    captions: Sequence[Caption],
    cuts: Sequence[Cut | None],
    reader: CaptionReader,
    tell: Callable[[str], None],
) -> None:
    cut = [(caption, one) for caption, one in zip(captions, cuts, strict=True) if one is not None]
    if not cut:
        return
    (where, _), first = cut[0]
    texts = len({text for (_, text), _ in cut})
    alike = texts - len({one.read for _, one in cut})
    same = f"; {alike + 1} of them differ only in what is lost" if alike else ""
    tell(
        f"{file}: {len(cut)} of {len(captions)} captions are longer than {reader.name} reads ({reader.length} tokens); "
        f"first {where}: {first.tokens} tokens, lost is {short(first.lost)!r}{same}"
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
    first = f"first {captions[place][0]}: {short(captions[place][1])!r}"
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


def short(text: str) -> str:
    """The beginning of a caption, on one line."""
    line = " ".join(text.split())
    return line if len(line) <= SHOWN else f"{line[:SHOWN]}..."
