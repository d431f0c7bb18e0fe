"""What a bad disk does to an entry: nobody sees it from outside."""

from __future__ import annotations

import json
import os
from pathlib import Path


def flip(path: Path, name: str) -> None:
    """Change a bit in a tensor of an entry, and neither its size nor its time of change."""
    stat, content = path.stat(), bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    content[8 + length + header[name]["data_offsets"][0]] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
