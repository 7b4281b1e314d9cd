"""No stops for the collector of garbage: what lives as long as the engine is not looked at again.

A tokenizer of 100,000 rows and a loaded model are some 200,000 objects, and Python's full
collections, which come as tokens are made, visit all of them: 0.1 to 0.3 s in which nobody gets a
token.

Invariant: only what lives at the time is set aside; what is made later is collected as ever. It is
the process's setting, so `collect_all` is called by whoever set aside, when that ends.
"""

import gc


def set_aside() -> None:
    """Collect once, then leave everything that there is out of later collections."""
    gc.collect()
    gc.freeze()


def collect_all() -> None:
    """Look at everything again, and collect now."""
    gc.unfreeze()
    gc.collect()
