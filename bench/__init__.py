"""The benchmark: stock `prefect worker` and headrace side by side, on one real Prefect server. Run by `make bench`."""
