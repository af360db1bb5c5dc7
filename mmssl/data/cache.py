"""Where datasets keep what they make or copy."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """``$MMSSL_CACHE``, or ``mmssl`` in the user's cache folder."""
    given = os.environ.get("MMSSL_CACHE")
    if given:
        return Path(given).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "mmssl"
