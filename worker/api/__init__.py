"""Everything said to the Prefect server; knows no processes.

Map of the package, from the caller down to the wire:

- `client`      `PrefectClient`: what can be said, and the errors to expect. The pool and the worker here, the rest by
                noun in `run_endpoints`, `definition_endpoints` and `record_endpoints` (`endpoints`: what they share)
- `models`      what an answer holds (`records`: logs and events, as sent and as read back)
- `transport`   a call is sent until it is answered (`outage`: when failures are one, and what is logged)
- `exchange`    one try of a call: CSRF token, request, redirects, verdict
- `connection`  base URL, headers and credentials, TLS: what the settings make of them
- `errors`      what an answer means: the errors, and which trouble is worth another try
"""
