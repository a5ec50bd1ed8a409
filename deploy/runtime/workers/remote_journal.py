"""`WorkerJournal` over the network (`common/rpc/client.py`)."""

from __future__ import annotations

from common.rpc.client import Client, calling
from common.rpc.curve import ServerKeys
from common.rpc.server import LOOPBACK, Service
from deploy.run_dir.journal import WorkerJournal


def journal_service(journal: WorkerJournal, address: str = LOOPBACK, keys: ServerKeys | None = None) -> Service:
    """Creates a service that writes to `journal`."""
    return Service(WorkerJournal, journal, address, keys=keys)


@calling(WorkerJournal)
class RemoteJournal(Client, WorkerJournal):
    """Client of the journal service."""
