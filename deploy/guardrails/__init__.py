"""Detects a policy that exploits its reward: probe clips, a held-out judge, rules, alarms.

Change here what raises an alarm (`rules.py`, pure functions) and what an alarm does (`monitor.py`). The guardrails only
see the exchange's probes, never training pairs or optimizer steps.
"""
