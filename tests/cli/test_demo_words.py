"""halonet demo: its words."""


def test_bad_ports_are_refused(fails):
    assert "--port must be from 1 to 65535, got 0" in fails(["demo", "run", "--port", "0"], 2)
    assert "no checkpoint at none" in fails(["demo", "none"])
