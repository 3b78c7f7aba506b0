"""A module of the user, named as one of the daemon or of its fork server."""

MINE = "runs of the user"
