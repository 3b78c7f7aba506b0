# headrace with the Prefect that flows need, as an unprivileged user. docs/docker.md says how to use it.

ARG BASE_IMAGE=python:3.13-slim

FROM ${BASE_IMAGE} AS build
# EXTRAS="" leaves Prefect out: the daemon alone, for flows that bring their own interpreter (`--python`).
ARG EXTRAS=prefect
WORKDIR /src
COPY pyproject.toml README.md constraints.txt ./
COPY worker worker
# Both secrets are optional: pip's configuration, and a certificate bundle for it to name.
RUN --mount=type=secret,id=pip_conf,target=/etc/pip.conf,required=false \
    --mount=type=secret,id=pip_ca,target=/run/secrets/pip_ca,required=false \
    python3 -m venv /opt/headrace \
    && /opt/headrace/bin/pip install --no-cache-dir --no-compile --disable-pip-version-check \
        -c constraints.txt ".${EXTRAS:+[$EXTRAS]}"
# Compiled here, for good: the user who runs it cannot write there, so each flow run would compile anew. Image layers keep
# times in whole seconds, so the sources get such a time first, or Python would take the compiled files for stale.
RUN find /opt/headrace -name '*.py' -exec touch --date="@$(date +%s)" {} + \
    && /opt/headrace/bin/python -m compileall -q /opt/headrace/lib

FROM ${BASE_IMAGE}
# What the flows need of the system, for example APT_PACKAGES="git" for git_clone pull steps.
ARG APT_PACKAGES=""
RUN if [ -n "$APT_PACKAGES" ]; then \
        apt-get update && apt-get install -y --no-install-recommends $APT_PACKAGES && rm -rf /var/lib/apt/lists/*; \
    fi \
    && useradd --uid 10001 --user-group --create-home --home-dir /var/lib/headrace --shell /usr/sbin/nologin headrace \
    && install -d -m 700 -o 10001 -g 10001 /var/lib/headrace/state
COPY --from=build /opt/headrace /opt/headrace

ENV PATH=/opt/headrace/bin:$PATH HEADRACE_STATE_DIR=/var/lib/headrace/state
WORKDIR /var/lib/headrace
USER 10001:10001

# The daemon is PID 1: it gets the stop signal itself and reaps whatever the flows leave behind.
STOPSIGNAL SIGTERM
ENTRYPOINT ["headrace"]
CMD ["--help"]

# Needs `--with-healthcheck`. Loopback is asked directly, whatever proxy the flows use.
HEALTHCHECK --interval=30s --timeout=5s --start-period=30s --retries=3 \
    CMD ["python", "-c", "import os; from urllib.request import ProxyHandler, build_opener; build_opener(ProxyHandler({})).open('http://127.0.0.1:' + os.environ.get('PREFECT_WORKER_WEBSERVER_PORT', '8080') + '/livez', timeout=4)"]
