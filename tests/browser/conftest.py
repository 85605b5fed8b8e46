"""The frontend of the test server in a headless Chromium."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ARTEFACTS = Path(__file__).resolve().parents[1] / "artefacts"


@pytest.fixture(scope="session")
def chromium() -> str:
    """Where the browser is; without one, these tests are skipped on a desk and fail in CI."""
    from weft.tools.checks import browser, in_ci

    found = os.environ["WEFT_CHROMIUM"] if "WEFT_CHROMIUM" in os.environ else browser()
    if not found:
        (pytest.fail if in_ci() else pytest.skip)("no Chromium: install it or name it in WEFT_CHROMIUM")
    return found


@pytest.fixture(scope="module")  # while it is open, nothing else in this process can run an event loop
def opened(chromium, server) -> Iterator[tuple]:
    """The page, and the errors that its scripts raise."""
    from weft.tools.workflows import canvas

    with canvas(server, chromium) as page_and_errors:
        yield page_and_errors


@pytest.fixture
def page(opened):
    """The page; a script error during the test fails it."""
    page, errors = opened
    errors.clear()
    yield page
    assert not errors, errors


@pytest.fixture(scope="session")
def artefacts() -> Path:
    """Screenshots, for people to look at; git ignores them."""
    ARTEFACTS.mkdir(exist_ok=True)
    return ARTEFACTS
