"""A table that stays readable at 80 columns and in logs: columns that do not fit go below, under the same first one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # keeps `--help` fast
    from rich.console import Console, ConsoleOptions
    from rich.table import Table

PADDING = 3  # columns of the terminal between two columns of the table, with borders
LONGEST_NAME = 30  # of the first column; longer names wrap


@dataclass(frozen=True)
class StackedTable:
    """A title, the names of the columns, and rows of as many cells, in rich's markup. Figures are never cut."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    box: Any = None  # rich's box; None: its default
    sections: Sequence[int] = ()  # rows above which a line is drawn

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Yields one table per group of columns that fits the width."""
        from rich.text import Text  # noqa: PLC0415

        def width(place: int) -> int:
            cells = [self.columns[place], *(row[place] for row in self.rows)]
            return max(Text.from_markup(line).cell_len for cell in cells for line in cell.split("\n")) + PADDING

        left = options.max_width - min(width(0), LONGEST_NAME + PADDING) - 1
        groups: list[list[int]] = [[]]
        for place in range(1, len(self.columns)):
            if groups[-1] and sum(map(width, [*groups[-1], place])) > left:
                groups.append([])
            groups[-1].append(place)
        for number, group in enumerate(groups):
            yield self._table(self.title if not number else "", group)

    def _table(self, title: str, group: Sequence[int]) -> Table:
        from rich.table import Table  # noqa: PLC0415

        grid = Table(title=title or None, **({} if self.box is None else {"box": self.box}))
        grid.add_column(self.columns[0], overflow="fold")
        for place in group:
            grid.add_column(self.columns[place], justify="right", no_wrap=True)
        for number, row in enumerate(self.rows):
            if number in self.sections:
                grid.add_section()
            grid.add_row(row[0], *(row[place] for place in group))
        return grid
