"""headrace: a worker daemon that runs Prefect flow runs in local processes.

Read `runs/__init__.py`, then `runs/execution.py`, then `daemon.py`: that is the product.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
