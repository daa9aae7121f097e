"""Shards at URLs: downloaded once, whole or not at all."""

import functools
import http.server
import threading
from typing import ClassVar

import pytest

from halonet.data.sources import load_data
from tests.data.batches import assert_same_batches, batches


@pytest.fixture
def server(written):
    """A server of the written shards that counts what is asked of it, and can cut answers."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        asked: ClassVar[list[str]] = []
        cut = False

        def do_GET(self):
            self.asked.append(self.path)
            super().do_GET()

        def copyfile(self, source, outputfile):
            outputfile.write(source.read()[: 100 if self.cut else None])

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Handler, directory=str(written))
    ) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}", Handler
        running.shutdown()
        thread.join()


def test_remote_shards_are_downloaded_once(server, written, tmp_path):
    url, handler = server
    here = load_data(f"shards:{written}")
    data = load_data(f"shards:{url}/", data_root=str(tmp_path))
    assert_same_batches(batches(data), batches(here))
    assert len(handler.asked) == len(set(handler.asked))
    handler.asked.clear()
    names = [path.name for path in sorted(written.glob("train-*.tar"))]
    pattern = f"shards:{url}/train-{{000000..{len(names) - 1:06}}}.tar"
    again = load_data(pattern, data_root=str(tmp_path), validation_share=0.3)
    assert len(again.training.labels) + len(again.validation.labels) == 18
    load_data(f"shards:{url}", data_root=str(tmp_path))
    assert handler.asked == []


def test_download_that_fails_leaves_nothing(server, tmp_path):
    url, handler = server
    with pytest.raises(FileNotFoundError, match=r"can't download .*absent\.tar: .*404"):
        load_data(f"shards:{url}/absent.tar", data_root=str(tmp_path))
    handler.cut = True
    with pytest.raises(FileNotFoundError, match=r"can't download .*ended after 100 of \d+ bytes"):
        load_data(f"shards:{url}/train-000000.tar", data_root=str(tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
