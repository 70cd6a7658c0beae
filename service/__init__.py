"""sdc: photographs as a few kilobytes of latent, over HTTP."""

__version__ = "0.1.0"
