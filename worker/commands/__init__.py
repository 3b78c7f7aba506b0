"""The operators' commands: `ps`, `logs`, `stop` and `doctor`.

They look at a daemon from outside and change nothing about it: `daemons` reads what there is on this machine, `session` has
what all of them share. A daemon never imports any of this.
"""
