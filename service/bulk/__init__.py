"""Back-catalogues: many photographs to a store, without HTTP.  On this machine's one device, or on a Ray cluster's many.

sources -> Compressor, a batch of rows in, a batch of rows out -> manifest
             |  read, id; stored already?  else pipeline.compress
             '-> BlobStore, write-once: the same ids, blobs and sidecars as POST /compress
"""
