"""Everything said to the Prefect server; knows no processes.

Read `client.py` for what can be said, `transport.py` for how it gets there, `errors.py` for what an
answer means and `models.py` for what is in it.
"""
