"""A flow whose behaviour is decided by two environment variables, so that job variables have something to show."""

import os

from prefect import flow, task


@task
def do_something_important(not_so_secret_value: str) -> None:
    print(f"MY_NOT_SO_SECRET_CONFIG is {not_so_secret_value}")


@flow(log_prints=True)
def some_work(also_show: list[str] | None = None) -> None:
    """Print what the environment says; `also_show` names further variables to print."""
    environment = os.environ.get("EXECUTION_ENVIRONMENT", "local")
    print(f"EXECUTION_ENVIRONMENT is {environment}")

    for name in also_show or []:
        print(f"{name} is {os.environ.get(name, 'not set')}")

    not_so_secret_value = os.environ.get("MY_NOT_SO_SECRET_CONFIG")
    if not_so_secret_value is None:
        raise ValueError("MY_NOT_SO_SECRET_CONFIG is not set: give it on the work pool, the deployment or the run.")
    do_something_important(not_so_secret_value)


if __name__ == "__main__":
    some_work()
