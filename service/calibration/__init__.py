"""Fits an entropy profile to a model's latents: the float twin of ``service.codec.context``, its rounding to integers, and the tables.

Used by ``sdc models calibrate`` and by ``training/``; a running service knows nothing of it.
"""
