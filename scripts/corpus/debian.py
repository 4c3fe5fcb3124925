"""Packages of Debian as a source of text. They need not be installed, and root is not needed: apt-get
downloads one and dpkg-deb unpacks it into a temporary folder."""
import os
import shutil
import subprocess

from . import DataError

OTHER_TEXT = "use another text: prepare_data.py text FILE... --out DIR"


def remedy(package):
    return f"; install it (apt-get install {package}), or {OTHER_TEXT}"


def download(package, size, folder):
    """Downloads a package of `size` ("1.6 MB") and unpacks it; returns the folder that has its files."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise DataError(f"this text comes from Debian's package {package}, but {tool} is not on this "
                            f"machine; {OTHER_TEXT}")
    print(f"fetching Debian's package {package} ({size})", flush=True)
    patience = ["-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1"]
    result = run(["apt-get", *patience, "download", package], folder)
    if result.returncode != 0:  # perhaps the package lists are missing or old: fetch our own
        lists, cache = os.path.join(folder, "lists"), os.path.join(folder, "cache")
        os.makedirs(os.path.join(lists, "partial"))
        os.makedirs(os.path.join(cache, "archives", "partial"))
        own = [*patience, "-o", f"Dir::State::lists={lists}", "-o", f"Dir::Cache={cache}"]
        run(["apt-get", *own, "update"], folder)
        result = run(["apt-get", *own, "download", package], folder)
    packages = [name for name in os.listdir(folder) if name.endswith(".deb")]
    if result.returncode != 0 or not packages:
        raise DataError(f"cannot download Debian's package {package}: {last_error(result)}{remedy(package)}")
    unpacked = os.path.join(folder, "unpacked")
    result = run(["dpkg-deb", "-x", packages[0], unpacked], folder)
    if result.returncode != 0:
        raise DataError(f"cannot unpack {packages[0]}: {last_error(result)}")
    return unpacked


def run(command, folder):
    environment = dict(os.environ, LC_ALL="C")
    return subprocess.run(command, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          errors="replace")


def last_error(result):
    lines = [line.strip() for line in result.stdout.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("E:")]
    return (errors or lines or [f"exit status {result.returncode}"])[-1]
