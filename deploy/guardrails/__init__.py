"""Detects a policy that exploits its reward: probe clips, a held-out judge, rules, alarms.

Change here what raises an alarm (`rules.py`, pure functions) and what happens then (`monitor.py`). Pairs and steps are
none of its business: it only sees the exchange's probes.
"""
