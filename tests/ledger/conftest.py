from __future__ import annotations

import pytest
from ledger_payloads import make_payload


@pytest.fixture
def payload():
    """A valid payload of a kind of event."""
    return make_payload
