"""Where things are kept on this computer."""

from __future__ import annotations

from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Compiled modules: they can be made again, so they stand where the system keeps caches."""
    return Path(platformdirs.user_cache_dir("machinehub"))
