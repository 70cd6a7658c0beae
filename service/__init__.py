"""sdc: photographs as a few kilobytes of latent, over HTTP."""

from service.process import before_libraries

before_libraries()

__version__ = "0.1.0"
