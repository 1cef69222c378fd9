"""A module that tells which process has imported it."""

from __future__ import annotations

import os

IMPORTED_BY = os.getpid()
