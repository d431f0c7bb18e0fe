"""A model of each kind."""

from __future__ import annotations

import pytest
from small_llava import volume_llava


@pytest.fixture
def model(kind, encoder, recipes):
    return volume_llava(kind, encoder, recipes)
