"""An evaluation as a table: for a terminal, as Markdown, and as LaTeX rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from common.stacked_table import StackedTable
from deploy.evaluation.figures import TIE, Evaluation

PREFERS = 0.5  # share of clips from which a score is said to prefer a control


def heading(found: Evaluation) -> str:
    """What was compared, in one line."""
    prompts = len(found.prompts)
    what = f"{prompts} prompts" if found.clips == prompts else f"{found.clips} clips of {prompts} prompts"
    seeds = "same seeds" if found.same_seeds else "other seeds"
    return (
        f"{what}, {seeds}; mean, and change from {found.against} with its 95 % interval over prompts; "
        f"win/tie/lose of prompts (tie: less than {TIE:g} points)"
    )


def title(found: Evaluation, name: str) -> str:
    """The name of a figure, and how many prompts it is about if those are not all."""
    counted, prompts = found.counted[name], len(found.prompts)
    return name if counted == prompts else f"{name} ({counted} of {prompts} prompts)"


def text_table(found: Evaluation) -> StackedTable:
    """The table for a terminal."""
    rows = [(title(found, name), *(_text(row[label]) for label in found.labels)) for name, row in found.figures.items()]
    return StackedTable(heading(found), ["", *found.labels], rows)


def _text(figure: Mapping[str, Any]) -> str:
    lines = [f"{figure['mean']:.2f}"]
    change = figure.get("change")
    if change is not None:
        moved = f"{change['mean']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}]".replace("[", r"\[")
        colour = "green" if change["low"] > 0 else "red" if change["high"] < 0 else ""
        lines.append(f"[{colour}]{moved}[/]" if colour else moved)
        lines.append(f"{figure['win']:.0%}/{figure['tie']:.0%}/{figure['lose']:.0%}")
    return "\n".join(lines)


def notes(found: Evaluation) -> list[str]:
    """Lines below the table: metrics over all clips of a model, and scores that prefer a control."""
    lines = [
        f"{name} over all clips: {', '.join(f'{label} {value:.3f}' for label, value in row.items())}"
        for name, row in found.sets.items()
    ]
    for name, controls in found.controls.items():
        for control, result in controls.items():
            if result["preferred"] > PREFERS:
                lines.append(
                    f"{name} prefers the {control} clip in {result['preferred']:.0%} of {result['clips']:g} cases "
                    f"({result['clip_mean']:.2f} -> {result['control_mean']:.2f})"
                )
    return lines


def markdown(found: Evaluation) -> str:
    """The table in Markdown."""
    lines = [heading(found), "", _row(["", *found.labels]), _row(["---", *("---:" for _ in found.labels)])]
    lines += [_row([title(found, name), *(_markdown(row[label]) for label in found.labels)])
              for name, row in found.figures.items()]  # fmt: skip
    return "\n".join([*lines, "", *notes(found)]).rstrip()


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _markdown(figure: Mapping[str, Any]) -> str:
    change = figure.get("change")
    mean = f"{figure['mean']:.2f}"
    return mean if change is None else f"{mean} ({change['mean']:+.2f} [{change['low']:+.2f}, {change['high']:+.2f}])"


def latex(found: Evaluation) -> str:
    """One row per model, one column per figure, as the papers' tables have them; the best of each column is bold."""
    best = {name: max(row.values(), key=lambda one: one["mean"])["mean"] for name, row in found.figures.items()}
    names = [_escaped(title(found, name)) for name in found.figures]
    lines = [f"% {heading(found)}", " & ".join(["", *names]) + r" \\ \midrule"]
    for label in found.labels:
        cells = [_latex(row[label], best[name]) for name, row in found.figures.items()]
        lines.append(" & ".join([_escaped(label), *cells]) + r" \\")
    return "\n".join(lines)


def _latex(figure: Mapping[str, Any], best: float) -> str:
    text = f"{figure['mean']:.2f}"
    text = rf"\textbf{{{text}}}" if figure["mean"] == best else text
    change = figure.get("change")
    return text if change is None else rf"{text} {{\scriptsize [{change['low']:+.2f}, {change['high']:+.2f}]}}"


def _escaped(text: str) -> str:
    special: Mapping[str, str] = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(one, f"\\{one}" if one in "&%$#_{}" else one) for one in text)


WRITTEN: Mapping[str, Callable[[Evaluation], str]] = {"markdown": markdown, "latex": latex}
