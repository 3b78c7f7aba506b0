"""Edited by the test between two runs."""

VERSION = "helper: first"
