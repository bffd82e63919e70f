"""What strangers try, row by row of the list in docs/security.md: machines in `actions.py` and
`test_machines.py`, what they leave waiting in `test_waiting.py`, uploads in `test_builds.py`,
clients in `test_clients.py`, names in `test_names.py`, values in `test_values.py`, pages in
`test_pages.py`, crowds in `test_rates.py`.
"""
