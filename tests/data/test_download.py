"""Shards at URLs: downloaded once, whole or not at all."""

import functools
import http.server
import threading
from typing import ClassVar

import pytest

from halonet.data.download import download, local_copy
from halonet.data.sources import load_data
from tests.data.batches import assert_same_batches, batches


@pytest.fixture
def server(written):
    """A server of the written shards that counts what is asked of it, and can cut its responses short."""

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


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("http://host/x.tar?v=1", "http://host/x.tar?v=2"),
        ("http://host/x.tar?v=1", "http://host/x.tar"),
        ("http://host/x.tar?v=1&a=/b", "http://host/x.tar?v=1&a=/c"),
        ("http://host/a%2Fx.tar", "http://host/a/x.tar"),
        ("http://host/x.tar%3Fv=1", "http://host/x.tar?v=1"),
        ("http://host:1/x.tar", "http://host:2/x.tar"),
    ],
)
def test_every_url_has_a_file_of_its_own(one, other, tmp_path):
    assert local_copy(one, str(tmp_path)) != local_copy(other, str(tmp_path))
    for url in (one, other):
        assert local_copy(url, str(tmp_path)).suffix.startswith(".tar")
        assert local_copy(url, str(tmp_path)).is_relative_to(tmp_path)


def test_query_is_asked_for(server, tmp_path):
    url, handler = server
    for query in ("?v=1", "?v=2", "?v=1"):
        place = local_copy(f"{url}/_info.json{query}", str(tmp_path))
        download(f"{url}/_info.json{query}", place, show_progress=False)
    assert handler.asked == ["/_info.json?v=1", "/_info.json?v=2"]


@pytest.mark.parametrize("path", ["../x.tar", "a/../x.tar", "a/%2e%2e/x.tar", "%2e%2e%2Fx.tar"])
def test_url_must_stay_in_its_folder(path, tmp_path):
    with pytest.raises(ValueError, match=r"no \.\. in its path"):
        local_copy(f"http://host/{path}", str(tmp_path))
