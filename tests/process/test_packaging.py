"""The wheel, the sdist and the editable install, built and used for real.

All is done on a copy, so that nothing that lies about in the checkout (build/, an old egg-info) helps, and the tests
of another process are not disturbed. The venvs are new and get legacy_poll by pip; its dependencies they borrow, by
links, from the environment that runs the tests, all but that one's own legacy_poll.
"""

from __future__ import annotations

import contextlib
import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = "legacy_poll"
ALEMBIC = [sys.executable, "-m", "alembic.config", "-c", "setup.cfg"]
NOT_SOURCE = shutil.ignore_patterns(
    *[".git", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "*.db*"],
    *["build", "dist", "*.egg-info", "instance"],
)


def run(*command, cwd, **environment):
    """Runs *command* and returns what it printed; what it printed is the failure's text too."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=str(cwd),
        env=dict(os.environ, **environment),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, "{}\n{}{}".format(command, done.stdout, done.stderr)
    return done.stdout


def copy_source(to):
    shutil.copytree(str(ROOT), str(to), ignore=NOT_SOURCE)
    return to


def build(source, kind):
    run(sys.executable, "-m", "build", "--no-isolation", "--" + kind, source, cwd=source.parent)
    [built] = (source / "dist").glob("*.whl" if kind == "wheel" else "*.tar.gz")
    return built


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return copy_source(tmp_path_factory.mktemp("built") / "source")


@pytest.fixture(scope="module")
def wheel(source):
    return build(source, "wheel")


@pytest.fixture(scope="module")
def sdist(source):
    return build(source, "sdist")


class Venv:
    def __init__(self, folder):
        run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder.parent)
        self.folder = folder
        self.bin = folder / "bin"
        borrowed = folder / "borrowed"
        borrowed.mkdir()
        for path in {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}:
            for entry in Path(path).iterdir():
                if PACKAGE not in entry.name and entry.suffix != ".pth":
                    (borrowed / entry.name).symlink_to(entry)
        [packages] = folder.glob("lib/python*/site-packages")
        (packages / "borrowed.pth").write_text(str(borrowed) + "\n")

    def install(self, *what):
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python"]
        options = ["--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
        run(*pip, "install", *options, *what, cwd=self.folder)

    def python(self, code):
        """What *code* prints, as JSON, run where neither the folder nor the environment adds to the path."""
        return json.loads(run(self.bin / "python", "-I", "-c", code, cwd=self.folder))


@pytest.fixture(scope="module")
def installed(tmp_path_factory, wheel):
    venv = Venv(tmp_path_factory.mktemp("wheel") / "venv")
    venv.install(wheel)
    return venv


@pytest.fixture(scope="module")
def editable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("editable")
    venv = Venv(folder / "venv")
    venv.install("--editable", copy_source(folder / "source"))
    return venv


def names(wheel):
    with zipfile.ZipFile(str(wheel)) as archive:
        return set(archive.namelist())


def test_the_wheel_has_every_source_file(wheel):
    have = names(wheel)
    for folder, place in [("legacy_poll", "legacy_poll"), ("alembic", "legacy_poll/migrations")]:
        files = [path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob("*") if path.is_file()]
        wanted = {"{}/{}".format(place, path) for path in files if "__pycache__" not in path.parts}
        assert wanted
        assert wanted - have == set(), "name the folder in setup.cfg: packages, or package_data"


def test_the_wheel_has_one_file_of_the_documentation(wheel):
    assert [name for name in names(wheel) if "/docs/" in name] == ["legacy_poll/docs/openapi.yaml"]


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_the_description_of_the_wire_is_served_by_what_is_installed(request, kind):
    venv = request.getfixturevalue(kind)
    served = venv.python(
        "import flask, json, legacy_poll; app = flask.Flask('app');"
        "poll = legacy_poll.LegacyPoll(app, url='sqlite:////nonexistent/log.db', public=True);"
        "app.register_blueprint(poll.blueprint, url_prefix='/poll');"
        "answer = app.test_client().get('/poll/openapi.yaml');"
        "print(json.dumps([answer.status_code, answer.get_data(as_text=True)]))"
    )
    assert served == [200, (ROOT / "docs" / "openapi.yaml").read_text(encoding="utf-8")]


def test_the_wheel_has_nothing_but_the_package(wheel):
    with zipfile.ZipFile(str(wheel)) as archive:
        [record] = [name for name in archive.namelist() if name.endswith(".dist-info/RECORD")]
        rows = csv.reader(archive.read(record).decode().splitlines())
        tops = {row[0].partition("/")[0] for row in rows}
    assert {re.sub(r"-.*\.", ".", top) for top in tops} == {"legacy_poll", "legacy_poll.dist-info"}


def test_the_wheel_is_marked_typed_and_carries_its_licence(wheel):
    have = names(wheel)
    assert "legacy_poll/py.typed" in have
    # Older setuptools put it beside METADATA, newer ones in licenses/.
    assert [name for name in have if re.search(r"\.dist-info/(licenses/)?LICENSE$", name)]


def test_the_sdist_builds_the_same_wheel(sdist, wheel, tmp_path):
    run("tar", "-xzf", sdist, cwd=tmp_path)
    [unpacked] = tmp_path.iterdir()
    assert names(build(unpacked, "wheel")) == names(wheel)


def test_the_sdist_has_what_its_reader_needs(sdist):
    with tarfile.open(str(sdist)) as archive:
        have = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"README.md", "CHANGES.md", "LICENSE", "wsgi.py", "gunicorn.conf.py", "alembic/env.py"}
    assert wanted | {"Makefile", "tests/conftest.py", ".ci/run"} <= have
    assert not [name for name in have if "__pycache__" in name or name.startswith((".venv", ".git/"))]


def test_the_installed_wheel_finds_its_migrations(installed):
    [place] = installed.python(
        "import importlib.util, json;"
        "spec = importlib.util.find_spec('legacy_poll.migrations');"
        "print(json.dumps(list(spec.submodule_search_locations)))"
    )
    assert installed.folder in Path(place).parents
    assert Path(place, "env.py").is_file()


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_alembic_still_means_the_library(request, kind):
    venv = request.getfixturevalue(kind)
    library, ours = venv.python(
        "import alembic.command, json, legacy_poll; print(json.dumps([alembic.__file__, legacy_poll.__file__]))"
    )
    assert Path(library).parent == venv.folder / "borrowed" / "alembic"
    assert venv.folder.parent in Path(ours).parents


def test_alembic_still_means_the_library_in_the_checkout():
    # The folder alembic/ is on the path here, in front of everything.
    code = "import sys; sys.path.insert(0, {!r}); import alembic; print(alembic.__file__)".format(str(ROOT))
    assert Path(run(sys.executable, "-c", code, cwd=ROOT).strip()).parent.parent != ROOT


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_the_installed_command_makes_the_tables(request, kind, tmp_path):
    venv = request.getfixturevalue(kind)
    url = "sqlite:///{}".format(tmp_path / "made.db")
    run(venv.bin / "legacy-poll", "upgrade", cwd=tmp_path, LEGACY_POLL_DATABASE_URL=url)
    assert "legacy_poll_outbox" in tables(tmp_path / "made.db")


def test_alembic_runs_the_same_migrations_from_setup_cfg(tmp_path):
    url = "sqlite:///{}".format(tmp_path / "made.db")
    run(*ALEMBIC, "upgrade", "head", cwd=ROOT, LEGACY_POLL_DATABASE_URL=url)
    assert {"legacy_poll_outbox", "legacy_poll_version"} <= tables(tmp_path / "made.db")


def test_alembic_prints_the_migrations_as_sql():
    for url in ["sqlite://", "postgresql+psycopg2://localhost/x", "mysql+pymysql://localhost/x"]:
        printed = run(*ALEMBIC, "upgrade", "head", "--sql", cwd=ROOT, LEGACY_POLL_DATABASE_URL=url)
        assert "CREATE TABLE legacy_poll_outbox" in printed


def test_migrations_look_at_no_table_that_is_not_ours(tmp_path):
    path = tmp_path / "shared.db"
    with contextlib.closing(sqlite3.connect(str(path))) as theirs:
        theirs.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY)")
        theirs.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        theirs.execute("INSERT INTO alembic_version VALUES ('theirs')")
        theirs.commit()
        url = "sqlite:///{}".format(path)
        run(*ALEMBIC, "upgrade", "head", cwd=ROOT, LEGACY_POLL_DATABASE_URL=url)
        # Compares the database with our metadata: a table that it sees and we do not have is one "to be dropped".
        # Not its exit code, since on SQLAlchemy 1.4 it takes SQLite's lack of IDENTITY for a difference.
        compared = subprocess.run(
            [*ALEMBIC, "check"],
            cwd=str(ROOT),
            env=dict(os.environ, LEGACY_POLL_DATABASE_URL=url),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ).stdout
        assert "new upgrade operations detected" in compared.lower(), compared
        assert "orders" not in compared and "remove_table" not in compared
        assert theirs.execute("SELECT version_num FROM alembic_version").fetchall() == [("theirs",)]


def tables(path):
    with contextlib.closing(sqlite3.connect(str(path))) as connection:
        return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
