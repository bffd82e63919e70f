"""Databases and runs that earlier code wrote, held to be read by this one (`test_upgrade.py`)."""
