"""What this process takes, from the kernel's account of it (Linux)."""

from __future__ import annotations

from pathlib import Path


def megabytes(name: str) -> float:
    """``VmRSS``, what it holds now, or ``VmHWM``, the most it held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def forget_peak() -> float:
    """Let the peak begin anew, so that preparations do not count; return what is held now."""
    Path("/proc/self/clear_refs").write_text("5")
    return megabytes("VmRSS")
