"""How many processes can work at once."""

import os


def cores() -> int:
    """The cores that this process may use, which on a shared machine are not all there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
