"""A module beside the flows, imported late."""
