"""Pillow: opens untrusted bytes as upright 8-bit sRGB, and writes pictures.  Must not know about models, blobs or HTTP."""
