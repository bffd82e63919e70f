"""What the hub and its sandbox workers both know. The only part of `sandbox` that `machinehub`
imports.

`messages.py` has the messages and `frames.py` their bytes; `inputs.py` and `outbox.py` what goes
into a guest and comes out of it; `limits.py` the limits that are frozen into images; `formats.py`
the versions of everything that is kept; `ids.py` what counts what.
"""
