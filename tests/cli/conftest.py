"""How a command fails: with one line."""

import pytest

from halonet import cli


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail, and returns its one line on standard error."""

    def run(words, status=1):
        with pytest.raises(SystemExit) as stopped:
            cli.main([str(word) for word in words])
        lines = capsys.readouterr().err.splitlines()
        assert stopped.value.code == status, lines
        assert len(lines) == 1
        assert lines[0].startswith("halonet: ")
        return lines[0]

    return run
