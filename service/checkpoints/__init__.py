"""Brings Stable Diffusion checkpoints into the form the service loads, and keeps what is installed in order.

Used by the command line alone: a running service reads model folders and fetches nothing.
"""
