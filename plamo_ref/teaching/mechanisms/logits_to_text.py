"""Lesson 04b: text comes out once it is certain.

Invariant: what is shown, joined, is the text up to the stop string; nothing is taken back.
Built in notebooks/04b_logits_to_text.ipynb.
"""


def release(held: str, new: str, stop: str) -> tuple[str, str, bool]:
    """What may be shown, what is held, and whether the stop string is there."""
    text = held + new
    if stop in text:
        return text[: text.index(stop)], "", True
    keep = max(n for n in range(len(stop)) if text.endswith(stop[:n]))
    return text[: len(text) - keep], text[len(text) - keep :], False
