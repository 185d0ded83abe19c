"""Every marshmallow that an application may pin: the schemas' and the routes' own tests, run with each.

`make test` has the newest, `make test-oldest` an early 3; the others are installed here into a folder of the test's
own, which another process then has first on its path.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import pytest

from tests.gunicorn import ROOT
from tests.servers import missing

TESTS = ["tests/unit/test_schemas.py", "tests/http/test_publish_route.py", "tests/http/test_bad_input.py"]
RUN = """
import sys, marshmallow, pytest
assert marshmallow.__file__.startswith(sys.argv[1]), marshmallow.__file__
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", "-p", "no:xdist"] + sys.argv[2:]))
"""


# 2.20.0 imports what Python 3.10 took away.
OLDEST = "2.20.0" if sys.version_info < (3, 10) else "2.20.5"


@pytest.mark.parametrize("version", [OLDEST, "3.0.0"])
def test_any_marshmallow_will_do(version, tmp_path):
    if version.startswith("2.") and sys.version_info >= (3, 12):
        if importlib.util.find_spec("setuptools") is None:
            pytest.skip("marshmallow 2 imports distutils, which Python has not had since 3.12")
    folder = str(tmp_path / "marshmallow")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    done = subprocess.run(
        command + ["--target", folder, "marshmallow==" + version], capture_output=True, text=True, timeout=300
    )
    if done.returncode:
        missing("marshmallow {}, which pip could not get: {}".format(version, done.stderr[-300:]))
    done = subprocess.run(
        [sys.executable, "-c", RUN, folder] + TESTS,
        cwd=str(ROOT),
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([folder, str(ROOT)])),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert " passed" in done.stdout, done.stdout
