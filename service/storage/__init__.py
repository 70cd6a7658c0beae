"""Blobs and what is known about them, on any object store.  Must not know about HTTP, models or the format."""
