"""Opens files that users name: regular files only, up to a size limit."""

import io
import os
import stat
from pathlib import Path

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a folder",
}


def open_file(path: str | Path, most: int) -> io.BufferedReader:
    """Opens a file for reading, as `check_file` allows."""
    check_file(path, most)
    return open(path, "rb")


def check_file(path: str | Path, most: int) -> None:
    """Raises an OSError for what is no regular file, or not of 1 to `most` bytes.

    To open a named pipe waits for its writer, and a device may never end. So may a file of the
    system that is said to be empty. Links are followed.
    """
    facts, problem = os.stat(path), None
    if not stat.S_ISREG(facts.st_mode):
        kind = _KINDS.get(stat.S_IFMT(facts.st_mode), "something else")
        problem = f"is {kind}: give a regular file"
    elif not facts.st_size:
        problem = "is empty: give the whole file"
    elif facts.st_size > most:
        problem = f"has {facts.st_size:,} bytes, expected at most {most:,}: give a smaller file"
    if problem:
        raise OSError(f"{path} {problem}.")
