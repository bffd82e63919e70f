"""machinehub: deploy an XState machine, get a live multiplayer URL. Start reading at `app.py`."""
