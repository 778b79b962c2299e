"""Downloads the Omniglot archives: resumes, verifies, and never leaves half a file in place."""

import hashlib
import http.client
import os
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

OMNIGLOT_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"

# The MD5 sums of the official archives, as torchvision publishes them.
_OMNIGLOT_MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
_BLOCK = 1 << 16
# Errors that a later attempt may not meet, unlike a full disk or a wrong address.
_PASSING = (
    urllib.error.URLError,
    http.client.HTTPException,
    ConnectionError,
    TimeoutError,
    ssl.SSLError,
)
_PASSING_STATUS = {408, 425, 429, 500, 502, 503, 504}

Report: TypeAlias = Callable[[str, int, int | None], None]


def download_omniglot(
    out: str | Path,
    *,
    base_url: str = OMNIGLOT_URL,
    report: Report | None = None,
    timeout: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
) -> tuple[Path, ...]:
    """Downloads the two official Omniglot archives (9.5 and 6.5 MB) into the folder `out`.

    Complete archives that are already there are kept. An interrupted download continues from its
    `.part` file if the server supports it.

    Args:
      out: created if it does not exist.
      base_url: where the archives are, the data set's official repository by default.
      report: called as `report(name, done, total)` in bytes; `total` is None if it is not known.
      timeout: seconds without a byte before a connection is dropped.
      attempts: how often to connect before giving up, at least 1.
      pause: seconds before the second attempt, doubled for each one after it.

    Returns:
      The paths of the archives, background first: `load_omniglot(out)` reads them.

    Raises:
      FileExistsError: if there is a file with another checksum; it stays as it is.
      ConnectionError: if the server refuses or all attempts fail; a partial download is kept.
      ValueError: for bad arguments, or if the checksum is wrong twice; the download is removed.
      OSError: if the file cannot be written.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    paths = []
    for name, md5 in _OMNIGLOT_MD5.items():
        url = f"{base_url.rstrip('/')}/{name}"
        try:
            path = download_file(
                url,
                out / name,
                md5=md5,
                report=report,
                timeout=timeout,
                attempts=attempts,
                pause=pause,
            )
        except ConnectionError as error:
            raise ConnectionError(
                f"{error} To do it by hand: download {' and '.join(_OMNIGLOT_MD5)} from "
                f"https://github.com/brendenlake/omniglot/tree/master/python with a browser or on "
                f"another machine, and place both, not extracted, in {out.resolve()}."
            ) from error
        paths.append(path)
    return tuple(paths)


def download_file(
    url: str,
    path: str | Path,
    *,
    md5: str,
    report: Report | None = None,
    timeout: float = 30.0,
    attempts: int = 5,
    pause: float = 1.0,
) -> Path:
    """Downloads one file, which appears at `path` once it is complete and its checksum is right.

    Args:
      url: an http or https address.
      path: of the file. A partial download is beside it, with `.part` after its name.
      md5: the checksum in hexadecimal digits.
      report, timeout, attempts, pause: as in `download_omniglot`, and so are the errors.
    """
    if attempts < 1 or not timeout > 0:
        raise ValueError(
            f"download_file needs attempts >= 1 and timeout > 0, got {attempts} and {timeout}."
        )
    path = Path(path)
    report = report or (lambda name, done, total: None)
    if path.exists():
        _check_existing(path, md5)
        report(path.name, path.stat().st_size, path.stat().st_size)
        return path
    part = path.with_name(path.name + ".part")
    for _ in range(2):  # once more after a wrong checksum, as from resuming an older file
        _fetch_whole(url, part, path.name, report, timeout, attempts, pause)
        found = _md5(part)
        if found == md5:
            os.replace(part, path)
            return path
        part.unlink()
    raise ValueError(
        f"{url} does not send {path.name}: the MD5 sum is {found}, expected {md5}. Nothing was "
        "kept. Is there a proxy in between, or has the file changed?"
    )


def _check_existing(path: Path, md5: str) -> None:
    found = _md5(path)
    if found != md5:
        raise FileExistsError(
            f"{path} exists and is not the official file (its MD5 sum is {found}, expected {md5}). "
            "It was not changed. A repacked archive can be loaded as it is; to download the "
            "official one, move this file away first."
        )


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _fetch_whole(
    url: str,
    part: Path,
    name: str,
    report: Report,
    timeout: float,
    attempts: int,
    pause: float,
) -> None:
    """Connects until `part` is as long as the server says, at most `attempts` times."""
    cause, reason = None, ""
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            return _fetch(url, part, name, report, timeout)
        except urllib.error.HTTPError as error:
            with error:  # closes the connection
                cause, reason = error, f"the server answers {error.code} ({error.reason})"
            if error.code not in _PASSING_STATUS:
                break
        except _PASSING as error:
            cause, reason = error, str(getattr(error, "reason", error)) or type(error).__name__
    else:
        reason += (
            f", after {attempts} attempts. Is there a network? Run it again to continue from the "
            "partial download"
        )
    raise ConnectionError(f"cannot download {url}: {reason}.") from cause


def _fetch(url: str, part: Path, name: str, report: Report, timeout: float) -> None:
    """One connection: appends to `part` if the server can resume, else starts over."""
    have = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing follows: `part` is complete, or of another file
            error.close()
            return
        raise
    with response:
        # The checksum finds a 206 that starts elsewhere.
        done = have if response.status == 206 else 0
        length = response.headers.get("Content-Length")
        total = None if length is None else done + int(length)
        with open(part, "ab" if done else "wb") as file:
            report(name, done, total)
            while block := response.read(_BLOCK):
                file.write(block)
                done += len(block)
                report(name, done, total)
        if total is not None and done < total:
            raise ConnectionError(f"the connection ended after {done} of {total} bytes")
