"""What strangers try, row by row of the list in docs/security.md: machines in `attacks.py` and
`test_machines.py`, clients in `test_clients.py`, crowds in `test_door.py`.
"""
