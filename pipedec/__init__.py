"""PipeDec: pipeline-parallel decoding filled by a dynamic prediction tree (arXiv 2504.04104).

The shared core of the services. This file imports nothing, so that the operator's image needs no torch.
"""

__version__ = "0.1.0"
