"""The journal as a worker elsewhere sees it: `Journal` over the network (`common/rpc.py`)."""

from __future__ import annotations

from common.journal import Journal
from common.keys import ServerKeys
from common.rpc import Client, calling
from common.service import LOOPBACK, Service


def journal_service(journal: Journal, address: str = LOOPBACK, keys: ServerKeys | None = None) -> Service:
    """A service that writes into `journal`."""
    return Service(Journal, journal, address, keys=keys)


@calling(Journal)
class RemoteJournal(Client, Journal):
    """The calls of `Journal`, made by way of the service at `address`."""
