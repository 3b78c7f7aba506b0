"""Whose rules resolve job variables: the choice, apart from the rules, for those who only pass it on."""

from enum import StrEnum


class JobVariablesMode(StrEnum):
    """Whose rules decide where layers disagree (`--job-variables`)."""

    LAYERED = "layered"
    """The later layer wins in whatever form it is written; undeclared variables are not lost silently."""

    STOCK = "stock"
    """Prefect 3.8.8 to the letter."""
