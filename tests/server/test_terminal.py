"""A real daemon on a terminal: what a person sees, and what nobody wants to see."""

import os
import pty
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import pytest

from tests.support.api import PrefectApi
from tests.support.project import Project
from tests.support.server import PrefectServer
from tests.support.services import ROLE, SERVICE_MARK
from tests.support.wait import wait_for
