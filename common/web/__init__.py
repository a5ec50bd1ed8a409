"""Access control shared by all web servers: `douga watch`, `douga annotate`, and judges over HTTP; and the
clients, with their retries.

Whatever is changed here changes all of them; `tests/common/web` states what must stay refused.
"""
