"""Downloads against a server that breaks off, cannot resume, or gives something else."""

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from diffusion.runtime import downloads
from diffusion.runtime.downloads import Download, fetch
from diffusion.runtime.errors import UserError

CONTENT = bytes(range(256)) * 400
MD5 = hashlib.md5(CONTENT).hexdigest()


@pytest.fixture
def server():
    """Gives CONTENT; ``breaks`` says after how many bytes each of the next answers breaks off."""

    class Handler(BaseHTTPRequestHandler):
        breaks, asked, resumes, content, status = [], [], True, CONTENT, 200

        def do_GET(self):
            cls = type(self)
            start = 0
            cls.asked.append(self.headers.get("Range"))
            if cls.status != 200:
                self.send_error(cls.status)
                return
            if cls.resumes and (wanted := self.headers.get("Range")):
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                if start >= len(cls.content):
                    self.send_error(416)
                    return
            rest = cls.content[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(rest)))
            self.end_headers()
            self.wfile.write(rest[: cls.breaks.pop(0)] if cls.breaks else rest)

        def log_message(self, *_args):
            pass

    running = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield Handler, f"http://127.0.0.1:{running.server_port}/file.bin"
    running.shutdown()
    running.server_close()


def test_a_broken_download_is_resumed(server, tmp_path):
    handler, url = server
    handler.breaks = [1000, 50_000]
    fetch(Download("file.bin", url, md5=MD5), tmp_path / "d" / "file.bin", pause_s=0)
    assert (tmp_path / "d" / "file.bin").read_bytes() == CONTENT
    assert handler.asked == [None, "bytes=1000-", "bytes=51000-"]
    assert [path.name for path in (tmp_path / "d").iterdir()] == ["file.bin"]


def test_what_an_earlier_process_has_fetched_is_used(server, tmp_path):
    handler, url = server
    for have in (300, len(CONTENT)):
        (tmp_path / ".file.bin.part").write_bytes(CONTENT[:have])
        fetch(Download("file.bin", url, sha256=hashlib.sha256(CONTENT).hexdigest()), tmp_path / "file.bin", pause_s=0)
        assert (tmp_path / "file.bin").read_bytes() == CONTENT
    assert handler.asked == ["bytes=300-", f"bytes={len(CONTENT)}-"]


def test_a_server_that_cannot_resume_sends_everything_again(server, tmp_path):
    handler, url = server
    handler.resumes, handler.breaks = False, [1000]
    fetch(Download("file.bin", url, md5=MD5), tmp_path / "file.bin", pause_s=0)
    assert (tmp_path / "file.bin").read_bytes() == CONTENT


def test_another_content_is_refused_and_not_kept(server, tmp_path):
    handler, url = server
    handler.content = CONTENT[:-1] + b"x"
    with pytest.raises(UserError, match=r"file\.bin: its hash is .*, expected .*data\.path") as caught:
        fetch(Download("file.bin", url, md5=MD5), tmp_path / "file.bin", pause_s=0)
    assert "is kept" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert len(handler.asked) == downloads.ATTEMPTS


def test_without_an_answer_what_has_arrived_is_kept(server, tmp_path):
    handler, url = server
    (tmp_path / ".file.bin.part").write_bytes(CONTENT[:300])
    handler.status = 503
    with pytest.raises(UserError, match=r"failed 5 times \(HTTP Error 503.* What has arrived is kept"):
        fetch(Download("file.bin", url, md5=MD5), tmp_path / "file.bin", pause_s=0)
    assert (tmp_path / ".file.bin.part").read_bytes() == CONTENT[:300]
    with pytest.raises(UserError, match="failed 5 times") as caught:
        fetch(Download("x", "http://127.0.0.1:9/x", md5=MD5), tmp_path / "x", pause_s=0)
    assert "is kept" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "asked"), [(403, 1), (404, 1), (410, 1), (408, downloads.ATTEMPTS), (429, downloads.ATTEMPTS)]
)
def test_a_refusal_is_final_unless_it_passes(server, tmp_path, status, asked):
    handler, url = server
    handler.status = status
    expected = rf"file\.bin: the server refuses it \(HTTP Error {status}" if asked == 1 else "failed 5 times"
    with pytest.raises(UserError, match=expected):
        fetch(Download("file.bin", url, md5=MD5), tmp_path / "file.bin", pause_s=0)
    assert len(handler.asked) == asked
