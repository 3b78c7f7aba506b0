"""Deploys `some_work` from Python: `.deploy()` takes job variables as a dictionary.

The worker clones DEMO_PROJECT_GIT (a repository whose name ends in .git, on disk or anywhere else) for every run.
"""

import os

from prefect import flow

if __name__ == "__main__":
    flow.from_source(
        source=os.environ["DEMO_PROJECT_GIT"],
        entrypoint="demo_project/demo_flow.py:some_work",
    ).deploy(
        name="daily",
        work_pool_name=os.environ.get("DEMO_WORK_POOL", "demo-pool"),
        job_variables={
            "env": {
                "EXECUTION_ENVIRONMENT": os.environ.get("EXECUTION_ENVIRONMENT", "local"),
                "MY_NOT_SO_SECRET_CONFIG": os.environ.get("MY_NOT_SO_SECRET_CONFIG"),
            }
        },
    )
