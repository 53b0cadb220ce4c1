"""Search for inputs that break what must hold, led by coverage (atheris, which is libFuzzer for Python).

``make fuzz TARGET=image SECONDS=600 DATA=FOLDER`` runs it. Findings lie in ``build/fuzz``; ``--explain FILE`` names the recipe.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import asdict
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["models", "service", "pydicom", "python_multipart"]):
    from tests.fuzz.recipes import LONGEST, recipe_of
    from tests.fuzz.sources import MAKERS, places, sources
    from tests.fuzz.targets import SECONDS, check, warm

SLOWER = 5
"""Instrumented code takes this much longer at most."""


def main() -> int:
    """Fuzz a target until its seconds are over; the exit status is libFuzzer's."""
    parser = argparse.ArgumentParser()
    parser.add_argument("target", choices=sorted(MAKERS))
    parser.add_argument("--data", type=Path, help="a folder of DICOM files, damaged beside what is drawn")
    parser.add_argument("--work", type=Path, default=Path("build/fuzz"), help="where the corpus and findings are kept")
    parser.add_argument("--explain", type=Path, metavar="FILE", help="print the recipe of a finding, and end")
    parser.add_argument("--seconds", type=int, default=600)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    found = sources(options.target, options.data)
    where = {name: places(data, options.target) for name, data in found.items()}
    if options.explain is not None:
        print(json.dumps({"target": options.target} | asdict(recipe_of(options.explain.read_bytes(), found, where))))
        return 0
    corpus = options.work / options.target
    corpus.mkdir(parents=True, exist_ok=True)
    for number in range(min(256, len(found))):
        (corpus / f"source-{number}").write_bytes(bytes([number]))
    warm(options.target, found)

    def once(program: bytes) -> None:
        recipe = recipe_of(program, found, where)
        check(options.target, recipe.apply(found[recipe.source]), SECONDS * SLOWER)

    arguments = [
        sys.argv[0],
        f"-max_total_time={options.seconds}",
        f"-artifact_prefix={options.work}/{options.target}-",
        str(corpus),
    ]
    # Of the wall's clock, which other processes stretch: for what never ends; processor time is what the target is held to
    limits = ["-timeout=300", "-report_slow_units=300", "-rss_limit_mb=3000", f"-max_len={LONGEST}", "-len_control=0"]
    atheris.Setup([*arguments, *limits, "-print_final_stats=1"], once)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
