"""A module beside a nested flow, imported late."""
