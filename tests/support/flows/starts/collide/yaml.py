"""A user's module that shadows an installed one: this is `yaml` for everybody when its directory is first on the path.

It passes on the real one, as Prefect imports it, too.
"""

import importlib.machinery
import importlib.util
import sysconfig

_SPEC = importlib.machinery.PathFinder.find_spec("yaml", [sysconfig.get_paths()["purelib"]])
_REAL = importlib.util.module_from_spec(_SPEC)
import sys  # noqa: E402

_SHADOW = sys.modules["yaml"]
sys.modules["yaml"] = _REAL
_SPEC.loader.exec_module(_REAL)
sys.modules["yaml"] = _SHADOW
globals().update({name: value for name, value in vars(_REAL).items() if not name.startswith("__")})
__path__ = _REAL.__path__
MINE = "yaml of the user"
