"""The ``.sdc`` format: container, quantiser, entropy coder, rate control.

numpy and constriction only.  Must not know about torch, images or HTTP: this package alone can parse, verify and re-code a blob.
"""
