"""What is done to sound files: changes of bytes, and of values inside JSON."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from random import Random
from typing import Any

EDGES = (0, 1, 0x7F, 0x80, 0xFF)


class Verbatim(str):
    """Text that stands in JSON as it is, without quotes."""


def truncated(rng: Random, data: bytes) -> bytes:
    """Return a beginning."""
    return data[: rng.randrange(len(data) or 1)]


def flipped(rng: Random, data: bytes) -> bytes:
    """Return the bytes with one to a dozen bits changed, most of them early, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 12))):
        reach = rng.choice((64, 400, len(data)))
        changed[rng.randrange(min(reach, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwritten(rng: Random, data: bytes) -> bytes:
    """Return the bytes with a run of one to 16 replaced."""
    start, length = rng.randrange(len(data)), rng.randrange(1, 17)
    return data[:start] + bytes([rng.choice(EDGES)]) * length + data[start + length :]


def spliced(rng: Random, data: bytes) -> bytes:
    """Return the bytes with a part taken out, repeated, or put somewhere else."""
    first, second = sorted(rng.choices(range(len(data) + 1), k=2))
    part = data[first:second]
    rest = data[:first] + data[second:]
    place = rng.randrange(len(rest) + 1)
    return rng.choice(
        (rest, data[:second] + part + data[second:], rest[:place] + part + rest[place:])
    )


def grown(rng: Random, data: bytes) -> bytes:
    """Return the bytes with others behind them, or in front."""
    more = rng.randbytes(rng.choice((1, 4, 1000)))
    return data + more if rng.random() < 0.7 else more + data


def random_bytes(rng: Random, data: bytes) -> bytes:
    """Return as many bytes that mean nothing, or none."""
    return rng.randbytes(len(data)) if rng.random() < 0.8 else b""


BYTES = (truncated, flipped, flipped, overwritten, overwritten, spliced, grown, random_bytes)


def damaged(rng: Random, data: bytes) -> bytes:
    """Return the bytes with one of these changes, sometimes two."""
    for _ in range(rng.choice((1, 1, 1, 2))):
        if data:
            data = rng.choice(BYTES)(rng, data)
    return data


ODD = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1.5,
        "",
        " ",
        "x",
        [],
        {},
        [[]],
        [None],
        {"": ""},
        {"a": {"b": []}},
    ),
    *(10**30, -(10**400), 1e308, float("nan"), float("inf"), 2**63, -(2**63) - 1),
    *(
        "\ud800",
        "a\x00b",
        "../../etc/passwd",
        "/etc/passwd",
        "${oc.env:HOME}",
        "<image>",
        "<sub99-image>",
    ),
    *("<image_T9>", "NA", "\u202e\u2028", "1e999", "<sub" + "9" * 5000 + "-image>", "é" * 300, "."),
    *(
        "_target_",
        {"_target_": "os.system", "command": "true"},
        [0] * 1000,
        "\x1b[2J",
        "..",
        "~",
        "//",
    ),
    *(
        Verbatim("9" * 5000),
        Verbatim("-" + "1" * 5000),
        Verbatim("1" + "0" * 400 + ".0"),
        Verbatim("1e999999999"),
    ),
    *(
        Verbatim("[" * 2000 + "]" * 2000),
        Verbatim("[" * 100_000),
        Verbatim('{"a":' * 5000 + "1" + "}" * 5000),
    ),
    *(
        Verbatim("NaN"),
        Verbatim("-Infinity"),
        Verbatim('{"a": 1, "a": 2}'),
        Verbatim('"\\ud83d"'),
        Verbatim(""),
    ),
)
LONG = ("x" * 1_000_000, "<image>" * 150_000, "/".join(["a"] * 500_000))


def odd(rng: Random) -> Any:
    """Return a value that nobody expects."""
    return rng.choice(LONG) if rng.random() < 0.03 else copy.deepcopy(rng.choice(ODD))


def places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Yield each container below a value, with each of its keys."""
    keys = (
        list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
    )
    for key in keys:
        yield node, key
        yield from places(node[key])


def changed(rng: Random, value: Any) -> Any:
    """Return plain values with one or two of them replaced, moved, renamed or taken out."""
    value = copy.deepcopy(value)
    for _ in range(rng.choice((1, 1, 1, 2))):
        found = list(places(value))
        if not found:
            return odd(rng)
        node, key = rng.choice(found)
        what = rng.randrange(10)
        if what < 6:
            node[key] = odd(rng)
        elif what == 6:
            del node[key]
        elif what == 7:
            other, place = rng.choice(found)
            node[key] = (
                copy.deepcopy(other[place])
                if place in other or (type(place) is int and place < len(other))
                else None
            )
        elif what == 8 and isinstance(node, dict):
            name = odd(rng)
            node[
                name if isinstance(name, str) and not isinstance(name, Verbatim) else str(key) * 2
            ] = node.pop(key)
        else:
            node[key] = [node[key]] if rng.random() < 0.5 else {str(key): node[key]}
    return value if rng.random() < 0.97 else odd(rng)


def as_json(rng: Random, value: Any) -> bytes:
    """Return JSON; keys may be there twice, and verbatim text stands as it is."""
    marks: list[str] = []

    def marked(node: Any) -> Any:
        if isinstance(node, Verbatim):
            marks.append(str(node))
            return f"@@{len(marks) - 1}@@"
        if isinstance(node, dict):
            return {str(key): marked(one) for key, one in node.items()}
        return [marked(one) for one in node] if isinstance(node, list) else node

    ascii_only = rng.random() < 0.5
    text = json.dumps(marked(value), ensure_ascii=ascii_only, indent=rng.choice((None, 1)))
    for number, mark in enumerate(marks):
        text = text.replace(f'"@@{number}@@"', mark)
    if rng.random() < 0.03 and isinstance(value, dict) and value:
        text = text[:-1] + f", {json.dumps(str(next(iter(value))))}: 1}}"
    return text.encode("utf-8", errors="surrogatepass")
