"""What pages and pictures call scans; imports no template engine."""

from collections.abc import Collection, Mapping
from typing import Any


def scan_name(scan: Mapping[str, Any]) -> str:
    """What people call a scan: its path and, after the first of a file, its frame."""
    return f"{scan['path']}, frame {scan['frame']}" if scan["frame"] else str(scan["path"])


def word_for_none(names: Collection[str | None]) -> str:
    """What scans without a split or a class are counted under: no name of one."""
    return "none" if "none" not in names else "(none)"
