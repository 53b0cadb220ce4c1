"""What a report of a site shall promise: the options of its commands, read, checked, and said again."""

from __future__ import annotations

import argparse

from models.errors import Refusal

Targets = tuple[float, float, float]
"""Positive and negative predictive value, and error among accepted images."""


def add_targets(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what shall be promised."""
    parser.add_argument("--ppv", type=float, default=0.9, help="positive predictive value to promise")
    parser.add_argument("--npv", type=float, default=0.95, help="negative predictive value to promise")
    parser.add_argument("--accepted-error", type=float, default=0.05, help="error among accepted images to promise")


def targets_of(options: argparse.Namespace) -> Targets:
    """Return them.

    Raises
    ------
    Refusal
        ``config_invalid`` for one that is no share.
    """
    targets = (options.ppv, options.npv, options.accepted_error)
    if not all(0 < target < 1 for target in targets):
        raise Refusal("config_invalid", "What is promised must be between 0 and 1.")
    return targets


def words_of(targets: Targets) -> list[str]:
    """Return them as words of the command."""
    ppv, npv, error = map(str, targets)
    return ["--ppv", ppv, "--npv", npv, "--accepted-error", error]
