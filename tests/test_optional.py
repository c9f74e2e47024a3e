"""Tests of optional packages: skipped where a package is missing, failed where all are asked for."""

from __future__ import annotations

import pytest

from tests.conftest import pytest_runtest_setup


@pytest.mark.parametrize(("switch", "outcome"), [("0", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_a_missing_package_skips_or_fails_a_test(
    switch: str, outcome: type[BaseException], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTLOCAL_TEST_ALL", switch)
    request.node.add_marker(pytest.mark.needs("pytest"))
    pytest_runtest_setup(request.node)
    request.node.add_marker(pytest.mark.needs("a_package_of_nobody"))
    with pytest.raises(outcome, match="the optional package a_package_of_nobody is not installed"):
        pytest_runtest_setup(request.node)
