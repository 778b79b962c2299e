"""The download, against a server on the loopback interface that misbehaves as it is told."""

import hashlib
import http.server
import os
import threading
import time

import numpy as np
import pytest

from reptile_jax.datasets import download, download_omniglot
from reptile_jax.datasets.download import download_file
from tests.attacks import cheap, no_hang, special_files

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
        if step.get("to"):
            self.send_response(302)
            self.send_header("Location", step["to"])
            return self.end_headers()
        if step.get("header each"):
            return self.drip(b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 80, step["header each"])
        if wanted and server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.send_error(416)
            start += step.get("shift", 0)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        if length := step.get("length", str(len(body) - start)):
            self.send_header("Content-Length", length)
        self.end_headers()
        if step.get("each"):
            return self.drip(body, step["each"])
        if step.get("endless"):
            return self.pour(body)
        self.wfile.write(body[start : step.get("until", len(body))])
        self.wfile.flush()
        if step.get("stall"):
            server.released.wait(10)
        return None

    def drip(self, body, pause):
        """A byte now and then."""
        for byte in body:
            if self.server.released.wait(pause):
                return
            self.send(bytes([byte]))

    def pour(self, body):
        while self.send(body) and not self.server.released.is_set():
            self.server.poured += len(body)

    def send(self, data):
        try:
            self.wfile.write(data)
            self.wfile.flush()
        except OSError:  # nobody listens any more
            return False
        return True

    def log_message(self, *args):
        del args


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.script, server.requests, server.ranges = [{}], [], True
    server.released, server.poured = threading.Event(), 0
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


@pytest.mark.attack
@pytest.mark.parametrize("step", [{"endless": True, "length": ""}, {"length": "99999999999"}])
def test_a_body_without_an_end_is_given_up(server, tmp_path, monkeypatch, step):
    monkeypatch.setattr(download, "_LARGEST", 1_000_000)
    server.script = [step]
    with cheap(), pytest.raises(ConnectionError, match=r"file\.zip has more than 1,000,000 bytes"):
        fetch(server, tmp_path / "file.zip")
    assert len(server.requests) == 1
    assert all(path.stat().st_size <= 1_000_000 for path in tmp_path.iterdir())
    assert server.poured < 20_000_000
    server.script = [{}]
    monkeypatch.undo()
    monkeypatch.setenv("no_proxy", "*")
    assert fetch(server, tmp_path / "file.zip").read_bytes() == CONTENT  # nothing is in its way


@pytest.mark.attack
@pytest.mark.parametrize("step", [{"each": 0.05}, {"header each": 0.05}])
def test_a_byte_now_and_then_ends(server, tmp_path, monkeypatch, step):
    monkeypatch.setattr(download, "_LONGEST", 0.4)
    server.script = [step]
    begin = time.perf_counter()
    with no_hang(), pytest.raises(ConnectionError, match=r"more than 0\.4 s; run it again"):
        fetch(server, tmp_path / "file.zip")
    assert time.perf_counter() - begin < 3
    assert len(server.requests) == 1


@pytest.mark.attack
@pytest.mark.parametrize(
    "to", ["http://example.org/file.zip", "ftp://example.org/file.zip", "http://127.0.0.1@b.org/"]
)
def test_a_server_does_not_send_on_to_where_others_can_change_the_file(server, tmp_path, to):
    server.script = [{"to": to}]
    with no_hang(), pytest.raises(ConnectionError, match=r"sends on to .*\.org/.* not https"):
        fetch(server, tmp_path / "file.zip")
    assert len(server.requests) == 1


@pytest.mark.attack
def test_a_server_may_send_on_to_this_machine_and_to_no_file_of_it(server, tmp_path):
    server.script = [{"to": f"{server.url}/elsewhere"}, {}]
    assert fetch(server, tmp_path / "file.zip").read_bytes() == CONTENT
    server.script = [{"to": "file:///etc/passwd"}]
    server.requests.clear()
    with pytest.raises(ConnectionError, match=r"not (allowed|https)"):
        fetch(server, tmp_path / "other.zip")


@pytest.mark.attack
@pytest.mark.parametrize("length", ["many", "-5", "1e9", "9" * 5000, "²"])
def test_a_length_that_is_no_number_names_the_file(server, tmp_path, length):
    server.script = [{"length": length}]
    with no_hang(), pytest.raises(ConnectionError, match=r"says that file\.zip has '.* no number"):
        fetch(server, tmp_path / "file.zip")


@pytest.mark.attack
def test_what_is_in_the_place_of_a_download_is_a_regular_file(server, tmp_path):
    (tmp_path / "others").mkdir()
    pipe, *links = special_files(tmp_path / "others", "")
    for path, name in [*((path, "file.zip") for path in (pipe, *links)), (pipe, "file.zip.part")]:
        path.rename(tmp_path / name)
        with no_hang(), pytest.raises(OSError, match=rf"{name} is (a|empty)"):
            fetch(server, tmp_path / "file.zip")
        (tmp_path / name).rename(path)
    (tmp_path / "file.zip").touch()
    os.truncate(tmp_path / "file.zip", 2**40)
    with pytest.raises(OSError, match=r"file\.zip has 1,099,511,627,776 bytes, expected at most"):
        fetch(server, tmp_path / "file.zip")
    (tmp_path / "file.zip").rename(tmp_path / "file.zip.part")
    assert fetch(server, tmp_path / "file.zip").read_bytes() == CONTENT


@pytest.mark.attack
def test_a_link_in_the_place_of_a_download_is_not_written_through(server, tmp_path):
    mine = tmp_path / "mine"
    mine.write_bytes(b"mine")
    (tmp_path / "file.zip.part").symlink_to(mine)
    assert fetch(server, tmp_path / "file.zip").read_bytes() == CONTENT
    assert mine.read_bytes() == b"mine"


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
