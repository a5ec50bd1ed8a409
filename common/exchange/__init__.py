"""The durable queue between the roles: leases, candidates, scores, pairs, steps, recovery.

`api.py` is what workers may ask, `rules.py` decides (pure functions), `local.py` implements. Change a rule together
with its model in `tests/support/exchange/model.py`.
"""
