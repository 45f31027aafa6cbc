"""The bench's rows on PostgreSQL. That the others run is shown by running them (`make bench ARGS=--quick`)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from bench.harness import ROOT, BenchFailed
from bench.processes import processes
from tests import harness
from tests.harness import an_order, free_port


@pytest.mark.sqlite
@pytest.mark.skipif(not shutil.which("wrk"), reason="wrk is not installed (apt install wrk)")
def test_rows_on_postgresql_where_none_answers(tmp_path: Path) -> None:
    """They are left out with a sentence that says what is missing; nothing fails, and nothing is written."""
    closed_port = free_port()
    nobody = f"postgresql://postgres@127.0.0.1:{closed_port}/postgres"
    done = subprocess.run(
        [sys.executable, "-m", "bench", "9", "10", "--rounds", "1", "--scratch", tmp_path, "--out", tmp_path],
        cwd=ROOT, env={**os.environ, "TEST_POSTGRESQL_URL": nobody}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for row in (9, 10):
        assert f"row {row} is left out: no PostgreSQL answers at 127.0.0.1:{closed_port}" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_orders_of_several_processes_are_counted(tmp_path: Path) -> None:
    """A measurement is believed only where every process shows what was answered, and the log has no gap."""
    count = 1 if harness.engine.name == "sqlite" else 2
    with processes(harness.engine, count, tmp_path) as running:
        for server in running.servers:
            assert server.request("POST", "/api/order", an_order())[0] == 201
        running.check(count)
        with pytest.raises(BenchFailed, match=f"{count + 1} orders were answered"):
            running.check(count + 1)
        with harness.engine.session(running.folder) as fetch:
            fetch("UPDATE events SET seq = seq + 1 WHERE seq = (SELECT max(seq) FROM events)")
        with pytest.raises(BenchFailed, match="are numbered"):
            running.check(count)
