"""The version of douga: pyproject.toml reads it from here, so that it is also known where only the files are.

A job of Ray (`--working-dir .`) and a bare GPU machine run from the folder; there is no installed metadata to ask.
"""

VERSION = "0.1.0"
