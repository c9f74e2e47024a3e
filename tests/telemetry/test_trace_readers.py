"""Traces of one and of two processes as other tools read them."""

from __future__ import annotations

import gzip
import json
import logging
import re
from pathlib import Path

import pytest

from fastlocal.cli import main
from tests.helpers.command_line import train_words
from tests.helpers.fork_server import ForkServer
from tests.helpers.processes import on_ranks

PLUGIN = re.compile(r"^(.*?)(\.\d+)?\.pt\.trace\.json(?:\.gz)?$")
"""Names that TensorBoard's profiler plugin takes for traces."""


@pytest.mark.needs("hta")
@pytest.mark.parametrize("ranks", [1, 2])
def test_holistic_trace_analysis_finds_ranks_and_rounds(
    ranks: int, data: Path, tmp_path: Path, fork_server: ForkServer, caplog: pytest.LogCaptureFixture
) -> None:
    from hta.trace_analysis import TraceAnalysis

    words = ["profile", *train_words(data, tmp_path / "run")[1:], "--step1", "1", "--profile-rounds", "2"]
    if ranks == 1:
        assert main(words) == 0
    else:
        on_ranks(fork_server, ranks, words, tmp_path / "log")
    traces = sorted(path for path in (tmp_path / "run").iterdir() if PLUGIN.match(path.name))
    assert len(traces) == ranks
    for rank, path in enumerate(traces):
        with gzip.open(path, "rt") as file:
            info = json.load(file)["distributedInfo"]
        assert (info["rank"], info["world_size"]) == (rank, ranks)
    folder = tmp_path / "traces"
    folder.mkdir()
    for path in traces:
        path.rename(folder / path.name)
    with caplog.at_level(logging.WARNING):
        analysis = TraceAnalysis(trace_dir=str(folder))
    assert "ProfilerStep not found" not in caplog.text
    assert sorted(analysis.t.traces) == list(range(ranks))
    for rank in range(ranks):
        # rounds 2 and 3; the reader leaves the last one out, which may not be whole
        assert {2} <= set(analysis.t.get_trace(rank)["iteration"].unique()) - {-1} <= {2, 3}
