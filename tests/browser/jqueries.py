"""jQuery in the versions that pages still have: from Python packages where there are any, else from npm."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile

from tests.servers import find_program, missing

# version: (pip's requirement, or npm's; the file in the archive)
VERSIONS = {
    "1.4.4": ("js.jquery==1.4.4", "js/jquery/resources/jquery.js"),
    "1.7.2": ("js.jquery==1.7.2", "js/jquery/resources/jquery.js"),
    "1.12.4": ("XStatic-jQuery==1.12.4.1", "xstatic/pkg/jquery/data/jquery.js"),
    "2.2.4": ("XStatic-jQuery==2.2.4.1", "xstatic/pkg/jquery/data/jquery.js"),
    "3.3.1": ("XStatic-jQuery==3.3.1.1", "xstatic/pkg/jquery/data/jquery.js"),
    "3.7.1": ("XStatic-jQuery==3.7.1.1", "xstatic/pkg/jquery/data/jquery.js"),
    "4.0.0": ("jquery@4.0.0", "dist/jquery.js"),
}
DOWNLOAD_SECONDS = 120


def jquery(version, folder):
    """The text of jQuery *version*, downloaded to *folder*; the packages are read, not installed."""
    requirement, path = VERSIONS[version]
    folder.mkdir()
    if "@" in requirement:
        command = [find_program("npm"), "pack", "--silent", requirement]
    else:
        # Source archives, and what is in them as it is: nothing is built but the metadata that pip wants to see.
        command = [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--disable-pip-version-check",
            "--no-deps",
        ]
        command += ["--no-build-isolation", "--no-binary", ":all:", requirement]
    done = subprocess.run(command, cwd=str(folder), capture_output=True, text=True, timeout=DOWNLOAD_SECONDS)
    archives = [*folder.glob("*.tar.gz"), *folder.glob("*.tgz")]
    if done.returncode or not archives:
        missing("{}: {}".format(requirement, done.stderr.strip()[-500:]))
    with tarfile.open(str(archives[0])) as archive:
        [name] = [name for name in archive.getnames() if name.endswith("/" + path)]
        with io.TextIOWrapper(archive.extractfile(name), encoding="utf-8") as file:
            text = file.read()
    shutil.rmtree(str(folder))
    return text
