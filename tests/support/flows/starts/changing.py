"""A flow whose file and whose helper are edited between two runs."""

import helper
import notes
from prefect import flow

VERSION = "flow: first"


@flow
def changing(out: str) -> str:
    notes.note(out, "body", flow=VERSION, helper=helper.VERSION, file=helper.__file__)
    return VERSION
