"""``python -m deploy.docs`` writes the reference pages under `docs/`; ``--check`` only compares: exit code 1."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from deploy.reference import DOCS, pages


def main(argv: Sequence[str] | None = None) -> int:
    """0; 1 where a page differs from the code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.docs", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; name the pages that are not up to date")
    options = parser.parse_args(argv)
    old = [name for name, make in pages().items() if not _is_current(name, make())]
    for name in old:
        if not options.check:
            (DOCS / name).write_text(pages()[name](), "utf-8")
        print(f"docs/{name}: {'differs from the code: python -m deploy.docs' if options.check else 'written'}")
    return 1 if old and options.check else 0


def _is_current(name: str, text: str) -> bool:
    path = DOCS / name
    return path.exists() and path.read_text("utf-8") == text


if __name__ == "__main__":
    sys.exit(main())
