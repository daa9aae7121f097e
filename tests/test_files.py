"""Files: whole or not at all, through links, and into what must not be replaced."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from halonet.files import naming_file, write_atomically, write_text


def fail_with_a_full_disk(temporary: Path) -> None:
    temporary.write_text("half")
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writing_fails_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.txt"
    path.write_text("before")
    with pytest.raises(OSError, match=r"No space left on device: .*result\.txt"):
        write_atomically(path, fail_with_a_full_disk)
    assert [(one.name, one.read_text()) for one in tmp_path.iterdir()] == [("result.txt", "before")]


def test_a_link_stays_and_its_file_is_written(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link.txt"
    link.symlink_to("there/result.txt")
    for text in ("first", "second"):  # dangling at first
        write_text(link, text)
        assert link.is_symlink()
        assert (tmp_path / "there" / "result.txt").read_text() == text
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["result.txt"]
    with pytest.raises(OSError, match=r"link\.txt"):
        write_atomically(link, fail_with_a_full_disk)
    assert link.read_text() == "second"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
def test_a_pipe_is_written_to(tmp_path: Path) -> None:
    pipe, found = tmp_path / "pipe.txt", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: found.append(pipe.read_text()))
    reader.start()
    write_text(pipe, "through")
    reader.join(30)
    assert found == ["through"]
    assert stat.S_ISFIFO(pipe.stat().st_mode)


@pytest.mark.skipif(not Path("/dev/null").exists(), reason="there is no /dev/null here")
def test_a_device_is_never_replaced(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "replace", lambda *_: pytest.fail("a device was replaced"))
    link = tmp_path / "link.txt"
    link.symlink_to(os.devnull)
    for path in (Path(os.devnull), link):
        write_text(path, "nothing")
    assert stat.S_ISCHR(os.stat(os.devnull).st_mode)


@pytest.mark.skipif(not Path("/dev/stdout").exists(), reason="there is no /dev/stdout here")
@pytest.mark.parametrize("into", ["file", "pipe"])
def test_standard_output_is_written_to(into: str, tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from halonet.files import write_text\n"
        "print('before', flush=True); write_text(Path('/dev/stdout'), 'between\\n')"
    )
    with open(tmp_path / "shown", "w+") as file:
        done = subprocess.run(
            [sys.executable, "-c", code],
            stdout=file if into == "file" else subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        file.seek(0)
        shown = file.read() if into == "file" else done.stdout
    assert shown == "before\nbetween\n"


def test_an_error_names_one_file(tmp_path: Path) -> None:
    with (
        pytest.raises(OSError, match="No space left on device: 'model'"),
        naming_file(Path("model")),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with pytest.raises(FileNotFoundError, match="absent"), naming_file(Path("model")):
        (tmp_path / "absent").read_bytes()


def test_file_names_that_are_no_unicode_are_escaped(tmp_path: Path) -> None:
    write_text(tmp_path / "names.txt", os.fsdecode(b"caf\xe9.png"))
    assert (tmp_path / "names.txt").read_text(encoding="utf-8") == "caf\\udce9.png"
