"""Published weight versions on disk (`store.py`), served by the hub (`source.py`) and synced to samplers (`sync.py`).

Files are plain safetensors, written and checked tensor by tensor, so no process holds a whole model. Chunk sizes,
polling and the coding of differences (`delta.py`) can be changed freely, as hub and workers have the same code. Digests
and file layout must stay: runs on disk are recognised by them.
"""
