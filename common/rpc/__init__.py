"""Remote calls over ZeroMQ: client, server, wire format and CURVE keys.

It knows nothing of what is called: an interface is a `Protocol` class. Timeouts and queue sizes can be changed freely.
A change of the wire format needs a new `SCHEMA_VERSION` in `common/messages.py`.
"""
