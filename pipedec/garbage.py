"""Python's garbage collector, kept out of the hot loops, and of the imports before them.

Trees, batches and messages have no cycles: they are freed as they are dropped, and the collector finds nothing among
them. It looks nevertheless, after every 700 new objects, and now and then at everything that loading a model left. Of
the head's time with eight requests that was a sixth (`benchmarks.head`).
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

YOUNG = 20_000  # new objects that are still there when the collector looks at them; a cycle lives no longer than that


@contextmanager
def importing() -> Iterator[None]:
    """Nothing is collected: modules are there to stay. Looking for what is not was a fifth of the time that PyTorch and
    transformers take to be imported."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def collect_rarely() -> None:
    """For the whole process, once all is loaded: what is there by now is never looked at again, what is new seldom."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])
