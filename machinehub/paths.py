"""Where things are kept on this computer."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs


def cache_folder() -> Path:
    """Compiled modules (`MACHINEHUB_CACHE`): they can be made again, so they stand where the system
    keeps caches.
    """
    return Path(
        os.environ.get("MACHINEHUB_CACHE") or platformdirs.user_cache_dir("machinehub")
    ).resolve()


def config_folder() -> Path:
    """What this user is known by (`MACHINEHUB_CONFIG`)."""
    return Path(
        os.environ.get("MACHINEHUB_CONFIG") or platformdirs.user_config_dir("machinehub")
    ).resolve()
