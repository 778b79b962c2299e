"""Hostile files, and how little they may cost."""

import contextlib
import faulthandler
import os
import re
import struct
import time
import zlib
from pathlib import Path

MOST_MEGABYTES, MOST_SECONDS = 300, 2


@contextlib.contextmanager
def cheap(seconds=MOST_SECONDS):
    """Inside, at most 300 MB are allocated at a time, and at most 2 s of a processor's time used.

    Where a system does not tell the peak of its memory, only the time counts.
    """
    peak = Path("/proc/self/clear_refs")
    if peak.exists():
        peak.write_text("5")  # sets the peak to what is used now
    before, begin = _peak(), time.process_time()
    yield
    assert time.process_time() - begin < seconds
    assert _peak() - before < MOST_MEGABYTES


def _peak() -> float:
    status = Path("/proc/self/status")
    found = re.search(r"VmHWM:\s+(\d+)", status.read_text() if status.exists() else "")
    return int(found[1]) / 1000 if found else 0.0


@contextlib.contextmanager
def no_hang(seconds=20):
    """Ends the process with the traces of its threads if what is inside waits for ever."""
    faulthandler.dump_traceback_later(seconds, exit=True)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def png(width, height, *, lacks=0, color=2, extra=b""):
    """A PNG file of zeros, of which the last bytes before compression may be missing."""
    compress, pixels = zlib.compressobj(9), []
    size = height * (width * {0: 1, 2: 3, 6: 4}[color] + 1) - lacks
    block = bytes(1 << 20)
    for begin in range(0, size, len(block)):
        pixels.append(compress.compress(block[: size - begin]))
    pixels = b"".join([*pixels, compress.flush()])
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, color, 0, 0, 0))
    ends = png_chunk(b"IDAT", pixels) + png_chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + header + extra + ends


def png_chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def tiff(tags, tail=b""):
    """A TIFF file of tags (number, type, count, value), with `tail` after them."""
    entries = b"".join(struct.pack("<HHII", *tag) for tag in sorted(tags))
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + bytes(4) + tail


def special_files(folder, ending):
    """A named pipe, and links to devices and to what the system tells for ever."""
    pipe = folder / f"pipe{ending}"
    os.mkfifo(pipe)
    links = {"zero": "/dev/zero", "messages": "/proc/kmsg", "terminal": "/dev/tty"}
    found = [pipe]
    for name, target in links.items():
        if os.path.exists(target):
            found.append(folder / f"{name}{ending}")
            found[-1].symlink_to(target)
    return found
