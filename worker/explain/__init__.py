"""`headrace explain`: what a run would be started with, and where each value comes from.

Read in this order: `flags` → `command` (objects on the server) or `offline` (a file) → `subject` (what is asked about) →
`report` → `table`. Nothing here decides what a run gets: that is `worker.runs`, as for a run that is started.
"""
