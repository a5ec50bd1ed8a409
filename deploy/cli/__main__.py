"""``python -m deploy.cli``: the command `douga`, also where it is not installed."""

import sys

from deploy.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
