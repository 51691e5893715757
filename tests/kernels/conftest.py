"""Run the contract of AdamHC on each back end."""

from collections.abc import Iterable

import pytest
from torch import Tensor

from widthwise.kernels import backends


@pytest.fixture(params=["reference", "cpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the back end that "auto" stands for in this test; tests use each in turn."""
    resolve, chosen = backends.resolve, request.param

    def resolved(name: str, params: Iterable[Tensor]) -> str:
        return resolve(chosen if name == "auto" else name, params)

    monkeypatch.setattr(backends, "resolve", resolved)
    return str(chosen)
