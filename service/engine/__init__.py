"""torch and diffusers: load a model folder, warm it up, encode, restore, decode.

numpy in, numpy out.  Must not know about HTTP, files of pictures, the container or the queue.
"""
