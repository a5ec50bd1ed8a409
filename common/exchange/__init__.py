"""The durable queue between the roles: leases, candidates, scores, pairs, steps, recovery.

`api.py` defines the calls, `rules.py` holds the policy as pure functions, `local.py` implements the calls. A change to
a rule needs the same change in its model, `tests/support/exchange/model.py`.
"""
