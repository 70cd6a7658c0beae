"""The queue in front of the device: same-shaped requests become batches, one thread runs them.

Must not know what the operations compute, nor anything of HTTP, files or blobs.
"""
