"""No stops for the collector of garbage: what lives as long as the engine is not looked at again.

A tokenizer of 100,000 rows and a loaded model are some 200,000 objects, and Python's full
collections, which come as tokens are made, visit all of them: 0.1 to 0.3 s in which nobody gets a
token.

Invariant: only what lives at the time is set aside; what is made later is collected as ever. It is
the process's setting: `collect_all` is called by whoever set aside, when that ends, and for an
owner who goes without a word it is undone by itself. Of two engines in a process the first that
ends undoes it for both, and they only have their pauses again.
"""

import gc
import weakref


def set_aside(thorough: bool = True) -> None:
    """Collect once, then leave everything that there is out of later collections.

    Args:
        thorough: look at everything first. Else at what is young: what was dropped long ago then
            waits for the end, but it takes no time.
    """
    gc.collect(2 if thorough else 1)
    gc.freeze()


def set_aside_for(owner: object, thorough: bool = True) -> None:
    """The same until `collect_all`, or until nobody has the owner any more."""
    set_aside(thorough)
    # The end of the program needs no collection.
    weakref.finalize(owner, gc.unfreeze).atexit = False


def collect_all() -> None:
    """Look at everything again, and collect now."""
    gc.unfreeze()
    gc.collect()
