"""A module of the user, named as one of the daemon or of its fork server."""

MINE = "warmth of the user"
