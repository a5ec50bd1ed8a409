"""Published weight versions: the store on disk, and how samplers download them.

Change here formats and transport. Which version is wanted is decided by the exchange.
"""
