"""The actions of ``douga annotate``: serve the page, print the results, or export them."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any

from rich.console import Console
from rich.table import Table

from common.errors import ConfigError
from deploy import web_server
from deploy.annotate.sources import find_clips
from rewarders.annotation import inter_annotator
from rewarders.annotation.app import make_app
from rewarders.annotation.export import export
from rewarders.annotation.items import make_pairs
from rewarders.annotation.playback import PlaybackCheck
from rewarders.annotation.rubric import open_rubric
from rewarders.annotation.store import STORE, Store
from rewarders.annotation.survey import Survey


def annotate(options: argparse.Namespace) -> int:
    """Serves the page, prints the results or exports them, as the options say. Returns the exit code.

    Raises `ConfigError` for a place without clips, a bad rubric, or a missing or short token off loopback.
    """
    _check(options)
    if not options.results and options.export is None:
        _serve(options)
        return 0
    with opened(options) as survey:
        if options.results:
            for table in tables(inter_annotator.results(survey)):
                Console().print(table)
        else:
            print(export(survey, options.export))
    return 0


def _check(options: argparse.Namespace) -> None:
    for name in ("annotators", "pairs"):
        if getattr(options, name) < 1:
            raise ConfigError(f"--{name} {getattr(options, name)}: must be at least 1")


@contextmanager
def opened(options: argparse.Namespace) -> Iterator[Survey]:
    """Yields the survey of `options.place` with its answers; the store is closed at the end."""
    rubric = open_rubric(options.rubric)
    folder, clips = find_clips(options.place)
    pairs = make_pairs(clips, options.pairs, options.seed)
    with closing(Store(folder / STORE)) as store:
        yield Survey(clips, pairs, rubric, store, options.annotators, options.seed)


def _serve(options: argparse.Namespace) -> None:
    """Serves the page until Ctrl-C or SIGTERM."""
    token = web_server.token_of(options)
    with (
        web_server.opened(options, token) as listening,
        opened(options) as survey,
        closing(PlaybackCheck()) as playback,
    ):
        clips, pairs = len(survey.clips), len(survey.pairs)
        why = "" if pairs else " (no two clips have the same caption and first frame, or the same category)"
        print(f"{clips} clips to rate, {pairs} pairs to compare{why}; answers in {survey.store.path}")
        print(f"open {web_server.address(listening)}/ - Ctrl-C stops the server; all answers are kept", flush=True)
        web_server.serve(make_app(survey, playback, token), listening)


# Tables of the results.


def tables(results: Mapping[str, Any]) -> list[Table]:
    """Returns tables of win rates, opinions, agreement, annotators and coverage; empty ones are left out.

    `results` is the output of `inter_annotator.results`.
    """
    wins = [
        (f"{one['source']} over {one['against']}", one["wins"], one["losses"], one["ties"], _percent(one["rate"]),
         _range(one, _percent)) for one in results["win_rates"]
    ]  # fmt: skip
    opinions = [
        (one["source"] or "all clips", one["dimension"], one["clips"], _number(one["mean"]), _range(one, _number),
         f"{one['percent']:.1f} %") for one in results["opinions"]
    ]  # fmt: skip
    agreeing = [(one["dimension"], one["answers"], _number(one["alpha"])) for one in results["ratings"]]
    compared = sum(one["compared"] for one in results["annotators"])
    agreeing.append(("comparisons", compared, _number(results["pairs"]["alpha"])))
    people = [(one["name"], one["rated"], one["compared"]) for one in results["annotators"]]
    coverage = list(enumerate(results["clips"]["by_ratings"]))
    made = [
        _table("win rate, by majority", ("", "wins", "losses", "ties", "rate", "95 %"), wins),
        _table("mean opinion, 1 to 5", ("source", "dimension", "clips", "mean", "95 %", "of 5"), opinions),
        _table("agreement, Krippendorff's alpha", ("", "answers", "alpha"), agreeing),
        _table("annotators", ("", "rated", "compared"), people),
        _table("coverage", ("ratings", "clips"), coverage[::-1] if people else ()),
    ]
    return [table for table in made if table.row_count]


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> Table:
    grid = Table(title=title)
    for place, head in enumerate(heads):
        grid.add_column(head, justify="right" if place else "left", overflow="fold", no_wrap=place > 1)
    for row in rows:
        grid.add_row(*map(str, row))
    return grid


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.0f} %"


def _range(one: Mapping[str, Any], as_text: Any) -> str:
    return "-" if one["low"] is None else f"{as_text(one['low'])} to {as_text(one['high'])}"
