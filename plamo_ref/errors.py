"""The root of every error that plamo_ref raises on purpose.

Invariant: its message says what was wrong, where, and what to do, so the command line can print it
as it is. Anything else that escapes is a bug.
"""


class PlamoRefError(Exception):
    """Something the user can mend."""
