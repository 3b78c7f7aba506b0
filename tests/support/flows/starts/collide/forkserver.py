"""A module of the user, named as one of the daemon or of its fork server."""

MINE = "forkserver of the user"
