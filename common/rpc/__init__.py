"""Typed calls over ZeroMQ: client, server, codec, CURVE keys.

Change here how calls travel, retry and authenticate. It knows no exchange: services are Protocols with methods.
"""
