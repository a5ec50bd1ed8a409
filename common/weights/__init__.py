"""Published weight versions on disk (`store.py`) and weight sync to samplers (`sync.py`).

Files are plain safetensors, written and checked tensor by tensor, so no process holds a whole model. Chunk sizes and
polling can be changed freely. Digests and file layout must stay: runs on disk are recognised by them.
"""
