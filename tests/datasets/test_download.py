"""The download, against a server on the loopback interface that misbehaves as it is told."""

import hashlib
import http.server
import threading
import time

import numpy as np
import pytest

from reptile_jax.datasets import download, download_omniglot
from reptile_jax.datasets.download import download_file

CONTENT = np.random.default_rng(0).integers(0, 256, 300_000, dtype=np.uint8).tobytes()
OTHER = CONTENT[::-1]
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Answers request i as `server.script[i]` says, and as its last entry from then on."""

    def do_GET(self):
        server = self.server
        step = server.script[min(len(server.requests), len(server.script) - 1)]
        wanted = self.headers.get("Range")
        server.requests.append((self.path, wanted))
        body, start = step.get("body", CONTENT), 0
        if step.get("status"):
            return self.send_error(step["status"])
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.send_error(416)
            start += step.get("shift", 0)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start : step.get("until", len(body))])
        self.wfile.flush()
        if step.get("stall"):
            server.released.wait(10)

    def log_message(self, *args):
        del args


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.script, server.requests, server.ranges = [{}], [], True
    server.released = threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def fetch(server, path, **options):
    options = {"md5": MD5, "timeout": 5.0, "pause": 0.0, **options}
    return download_file(f"{server.url}/file.zip", path, **options)


def ranges(server):
    return [wanted for _, wanted in server.requests]


def test_downloads_and_reports(server, tmp_path):
    reports = []
    path = fetch(server, tmp_path / "file.zip", report=lambda *args: reports.append(args))
    assert path.read_bytes() == CONTENT
    assert [file.name for file in tmp_path.iterdir()] == ["file.zip"]
    assert reports[0] == ("file.zip", 0, len(CONTENT))
    assert reports[-1] == ("file.zip", len(CONTENT), len(CONTENT))
    done = [args[1] for args in reports]
    assert done == sorted(done)
    assert len(done) > 3


def test_a_good_file_is_kept_without_asking_the_server(server, tmp_path):
    path = tmp_path / "file.zip"
    path.write_bytes(CONTENT)
    reports = []
    assert fetch(server, path, report=lambda *args: reports.append(args)) == path
    assert server.requests == []
    assert reports == [("file.zip", len(CONTENT), len(CONTENT))]


def test_a_file_with_another_checksum_is_left_alone(server, tmp_path):
    path = tmp_path / "file.zip"
    path.write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"file\.zip exists and is not the official file"):
        fetch(server, path)
    assert path.read_bytes() == b"mine"
    assert server.requests == []


def test_a_truncated_answer_is_resumed_where_it_ended(server, tmp_path):
    server.script = [{"until": 100_000}, {"until": 200_000}, {}]
    assert fetch(server, tmp_path / "file.zip").read_bytes() == CONTENT
    assert ranges(server) == [None, "bytes=100000-", "bytes=200000-"]


def test_a_server_without_ranges_is_asked_from_the_start(server, tmp_path):
    server.ranges = False
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:5000])
    assert fetch(server, tmp_path / "file.zip").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=5000-"]


def test_an_interrupted_run_is_continued_by_the_next(server, tmp_path):
    path = tmp_path / "file.zip"
    server.script = [{"until": 70_000}, {"status": 404}]
    with pytest.raises(ConnectionError, match="404"):
        fetch(server, path)
    assert not path.exists()
    assert (tmp_path / "file.zip.part").read_bytes() == CONTENT[:70_000]
    server.script.append({})
    assert fetch(server, path).read_bytes() == CONTENT
    assert ranges(server)[-1] == "bytes=70000-"


@pytest.mark.parametrize("stale", [OTHER[:1000], OTHER, CONTENT + b"more"])
def test_a_resumed_file_with_a_wrong_checksum_is_started_over(server, tmp_path, stale):
    (tmp_path / "file.zip.part").write_bytes(stale)
    assert fetch(server, tmp_path / "file.zip").read_bytes() == CONTENT
    assert ranges(server) == [f"bytes={len(stale)}-", None]


def test_a_whole_part_file_needs_nothing_more(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(CONTENT)
    assert fetch(server, tmp_path / "file.zip").read_bytes() == CONTENT
    assert len(server.requests) == 1


def test_a_range_from_elsewhere_than_asked_is_not_kept(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(CONTENT[:1000])
    server.script = [{"shift": 7}, {}]
    assert fetch(server, tmp_path / "file.zip").read_bytes() == CONTENT
    assert ranges(server) == ["bytes=1000-", None]


def test_corrupt_content_is_an_error_that_leaves_nothing(server, tmp_path):
    server.script = [{"body": OTHER}]
    with pytest.raises(ValueError, match=f"expected {MD5}"):
        fetch(server, tmp_path / "file.zip")
    assert len(server.requests) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_stalled_connection_is_given_up_and_resumed(server, tmp_path):
    server.script = [{"until": 65_536, "stall": True}, {}]
    begin = time.perf_counter()
    assert fetch(server, tmp_path / "file.zip", timeout=0.3).read_bytes() == CONTENT
    assert time.perf_counter() - begin < 5
    assert len(server.requests) == 2


def test_attempts_are_bounded_and_the_pause_doubles(server, tmp_path, monkeypatch):
    server.script = [{"status": 503}]
    pauses = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    with pytest.raises(ConnectionError, match=r"503.*after 4 attempts"):
        fetch(server, tmp_path / "file.zip", attempts=4, pause=0.5)
    assert len(server.requests) == 4
    assert pauses == [0.5, 1.0, 2.0]


def test_bad_arguments(server, tmp_path):
    with pytest.raises(ValueError, match="attempts >= 1"):
        fetch(server, tmp_path / "file.zip", attempts=0)
    with pytest.raises(ValueError, match="timeout > 0"):
        fetch(server, tmp_path / "file.zip", timeout=0)


def omniglot(server, out, **options):
    return download_omniglot(out, base_url=server.url, timeout=5.0, pause=0.0, **options)


def test_omniglot_fetches_both_archives(server, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_OMNIGLOT_MD5", dict.fromkeys(download._OMNIGLOT_MD5, MD5))
    paths = omniglot(server, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["images_background.zip", "images_evaluation.zip"]
    assert all(path.read_bytes() == CONTENT for path in paths)
    assert [path for path, _ in server.requests] == [f"/{path.name}" for path in paths]


def test_omniglot_not_found_says_how_to_do_it_by_hand(server, tmp_path):
    server.script = [{"status": 404}]
    by_hand = r"404.*images_background\.zip and images_evaluation\.zip.*not extracted, in .*data"
    with pytest.raises(ConnectionError, match=by_hand):
        omniglot(server, tmp_path / "data")
    assert len(server.requests) == 1
    assert list((tmp_path / "data").iterdir()) == []


def test_omniglot_without_network_says_how_to_do_it_by_hand(server, tmp_path):
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as closed:
        url = f"http://127.0.0.1:{closed.server_port}"
    with pytest.raises(ConnectionError, match=r"refused.*after 2 attempts.*by hand"):
        download_omniglot(tmp_path, base_url=url, attempts=2, pause=0.0)


def test_the_official_address_and_checksums():
    assert download.OMNIGLOT_URL == (
        "https://raw.githubusercontent.com/brendenlake/omniglot/master/python/"
    )
    assert download._OMNIGLOT_MD5 == {
        "images_background.zip": "68d2efa1b9178cc56df9314c21c6e718",
        "images_evaluation.zip": "6b91aef0f799c5bb55b94e3f2daec811",
    }
