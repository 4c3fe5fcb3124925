"""The documentation of Python (PSF licence) from Debian's package pythonX.Y-doc: the sources of its pages,
11 MB of English with some code, in the order of their paths."""
import os
import subprocess
import tempfile

from . import DataError, debian


def package_name():
    """The package of this system's Python 3, such as python3.11-doc."""
    try:
        listed = subprocess.run(["apt-cache", "depends", "python3-doc"], capture_output=True, text=True,
                                env=dict(os.environ, LC_ALL="C"))
    except OSError as error:
        raise DataError(f"this text comes from a package of Debian, but apt-cache is not on this machine "
                        f"({error.strerror}); {debian.OTHER_TEXT}") from None
    for line in listed.stdout.splitlines():
        kind, _, name = line.strip().partition(": ")
        if kind == "Depends" and name.startswith("python3.") and name.endswith("-doc"):
            return name
    raise DataError("apt-cache does not know the package python3-doc; run apt-get update first, or "
                    f"{debian.OTHER_TEXT}")


def read_pages():
    """The pages as UTF-8 bytes."""
    package = package_name()
    inside = f"usr/share/doc/{package.removesuffix('-doc')}/html/_sources"
    if os.path.isdir("/" + inside):
        return read_folder("/" + inside)
    with tempfile.TemporaryDirectory(prefix="prepare_data_") as folder:
        return read_folder(os.path.join(debian.download(package, "13 MB", folder), inside))


def read_folder(folder):
    pages = []
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            with open(os.path.join(parent, name), "rb") as file:
                pages.append(file.read())
    if not pages:
        raise DataError(f"{folder}: no pages in it; {debian.OTHER_TEXT}")
    return pages
