"""The journal as a worker elsewhere sees it: `Journal` over the network (`common/rpc/client.py`)."""

from __future__ import annotations

from common.rpc.client import Client, calling
from common.rpc.curve import ServerKeys
from common.rpc.server import LOOPBACK, Service
from deploy.run_dir.journal import Journal


def journal_service(journal: Journal, address: str = LOOPBACK, keys: ServerKeys | None = None) -> Service:
    """A service that writes into `journal`."""
    return Service(Journal, journal, address, keys=keys)


@calling(Journal)
class RemoteJournal(Client, Journal):
    """The calls of `Journal`, made by way of the service at `address`."""
