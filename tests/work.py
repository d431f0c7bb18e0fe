"""How much work a function does, counted: no busy machine changes it, as it does seconds."""

from __future__ import annotations

import sys


def num_calls(function, *arguments):
    """Return how many functions of Python are called, this one included."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event == "call"

    sys.setprofile(note)
    try:
        function(*arguments)
    finally:
        sys.setprofile(None)
    return count
