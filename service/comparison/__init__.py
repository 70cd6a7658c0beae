"""A picture beside what other codecs make of it: rivals at equal bytes, and figures of quality.

Used by ``service.bench`` and by the page; knows nothing of files on disk, of HTTP or of the service's own codec.
"""
