"""Weight sync to many samplers: what a difference saves (`delta.py`), and a push to 56 of them (`fleet.py`).

Everything runs on one machine, so hub and samplers share its processors; each benchmark says what that distorts.
`benchmarks/weight_push.py` compares one version to a few samplers with Ray and with a bare socket.
"""
