"""Downloads the Omniglot archives: resumes, verifies, and never leaves half a file in place."""

import hashlib
import http.client
import ipaddress
import os
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from reptile_jax._files import check_file, open_file

OMNIGLOT_URL = "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"

# The MD5 sums of the official archives, as torchvision publishes them.
_OMNIGLOT_MD5 = {
    "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
    "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
}
_BLOCK = 1 << 16
_LARGEST = 2**26  # bytes; the archives have 9.5 and 6.5 MB
_LONGEST = 1800.0  # seconds for a file, which is 10 kB/s
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
    `.part` file if the server supports it. No file may have more than 64 MiB or take more than half
    an hour, and a server may only send on to https, or to this machine.

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
      OSError: if the file cannot be written, or what is in its place is no file of 64 MiB or less.
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
    with open_file(path, _LARGEST) as file:
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
    cause, reason, end = None, "", time.monotonic() + _LONGEST
    for attempt in range(attempts):
        if attempt:
            time.sleep(pause * 2 ** (attempt - 1))
        try:
            return _fetch(url, part, name, report, timeout, end)
        except _Refused as error:
            cause, reason = error, str(error)
            break
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


class _Refused(Exception):
    """What a server answers, and no other attempt would mend."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows a server to where nobody between can change the file, or to this machine."""

    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str):
        place = urllib.parse.urlsplit(newurl)
        if place.scheme != "https" and not _is_here(place.hostname or ""):
            fp.close()
            raise _Refused(f"the server sends on to {newurl[:200]}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _is_here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _fetch(url: str, part: Path, name: str, report: Report, timeout: float, end: float) -> None:
    """One connection: appends to `part` if the server can resume, else starts over."""
    if part.is_symlink():
        part.unlink()  # what it leads to is not this download's to write
    if part.exists() and not part.is_file():
        check_file(part, _LARGEST)  # which refuses it
    have = part.stat().st_size if part.exists() else 0
    have = have if have <= _LARGEST else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = _opened(request, timeout, end)
    except urllib.error.HTTPError as error:
        if have and error.code == 416:  # nothing follows: `part` is complete, or of another file
            error.close()
            return
        raise
    with response:
        # The checksum finds a 206 that starts elsewhere.
        done = have if response.status == 206 else 0
        total = _total(response.headers.get("Content-Length"), done, name)
        with open(part, "ab" if done else "wb") as file:
            report(name, done, total)
            while block := response.read1(_BLOCK):
                done += len(block)
                _check_progress(name, done, end)
                file.write(block)
                report(name, done, total)
        if total is not None and done < total:
            raise ConnectionError(f"the connection ended after {done} of {total} bytes")


def _opened(request: urllib.request.Request, timeout: float, end: float) -> Any:
    """The response of a server, in a thread that is left alone if it has not come by `end`.

    `timeout` is for a byte, and a server can send the headers one by one.
    """
    found: list[Any] = []

    def connect() -> None:
        try:
            found.append(urllib.request.build_opener(_Redirects).open(request, timeout=timeout))
        except Exception as error:
            found.append(error)

    thread = threading.Thread(target=connect, daemon=True)
    thread.start()
    thread.join(max(0.0, end - time.monotonic()))
    answer = found[0] if found else _Refused(_too_long())
    if isinstance(answer, Exception):
        raise answer
    return answer


def _total(length: str | None, done: int, name: str) -> int | None:
    """The size of the whole file, of the length that a server says follows."""
    if length is None:
        return None
    if not (length.isascii() and length.isdecimal() and len(length) < 20):
        raise _Refused(f"the server says that {name} has {length[:40]!r} bytes, which is no number")
    _check_size(name, done + int(length))
    return done + int(length)


def _check_progress(name: str, done: int, end: float) -> None:
    _check_size(name, done)
    if time.monotonic() > end:
        raise _Refused(_too_long())


def _check_size(name: str, size: int) -> None:
    if size > _LARGEST:
        raise _Refused(f"{name} has more than {_LARGEST:,} bytes there, so it is another file")


def _too_long() -> str:
    return f"it took more than {_LONGEST:g} s; run it again to continue from the partial download"
