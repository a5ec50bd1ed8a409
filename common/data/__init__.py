"""Files that users bring: videos, ratings, pairs made by people.

Change here formats and their error messages. Everything read here is untrusted input.
"""
