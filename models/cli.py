"""The ``overread`` command: a table of verbs, each imported only when called, so that no room imports another."""

from __future__ import annotations

import importlib
import sys
from typing import NamedTuple

from models.errors import Refusal


class Verb(NamedTuple):
    """One verb of the command.

    Attributes
    ----------
    door : str
        "module:function"; the function takes the remaining arguments and returns an exit code.
    summary : str
        What it does.
    needs : str
        The extra of the installation that it does not work without; empty if the service's own libraries do.
    """

    door: str
    summary: str
    needs: str = ""


GROUPS: dict[str, dict[str, Verb]] = {
    "use a model": {
        "serve": Verb("service.serve:main", "serve the shipped models over HTTP"),
        "predict": Verb("models.batch:main", "predict for files or folders, without a server"),
        "score": Verb("service.score:main", "score a whole archive into Parquet, on this machine or a Ray cluster", "score"),
        "example": Verb("models.example:main", "write a drawn chest X-ray as DICOM, to have something to send"),
    },
    "know whether it holds at your site, and what to label": {
        "certify": Verb("models.certify:main", "measure a model at a site, with intervals, from a small sample of labels"),
        "certify worklist": Verb("service.certify:main", "measure it from the labels of the worklist's random share"),
        "drift": Verb("service.health:main", "tell whether a site's scans have changed, or begin anew after a known change"),
        "select": Verb("models.pool:main", "choose what to annotate of a pool of images"),
        "plan": Verb("training.plan:main", "how many labels a target needs, from a learning curve of your own data", "train"),
        "simulate": Verb(
            "training.simulate:main", "replay rounds of annotation on labelled images: what would choosing have saved?", "train"
        ),
        "labels export": Verb(
            "service.label_commands:export_main", "write labels as a package to train with, or tasks for Label Studio"
        ),
        "labels import": Verb("service.label_commands:import_main", "store labels that were given elsewhere, from CSV or QuPath"),
    },
    "make a model, in this order": {
        "train classifier": Verb("training.classifier:main", "train a classifier and its loss-prediction module", "train"),
        "train segmenter": Verb("training.segmenter:main", "train a segmenter from points or masks", "train"),
        "adapt": Verb(
            "training.adapt:main", "adapt a trained classifier to a new hospital, without labels or with a few", "train"
        ),
        "export": Verb("training.export:main", "export a trained model to ONNX", "train"),
        "calibrate": Verb("training.calibrate:main", "fit units and limits on held-out images, with the exported graph", "train"),
        "evaluate": Verb("training.evaluate:main", "measure the exported graph, or check a released card", "train"),
        "release": Verb("training.release:main", "write the model package: model.onnx and card.json", "train"),
    },
    "change the model in use": {
        "sign": Verb("models.signature:main", "sign a model package that was reviewed"),
        "candidate": Verb("service.promotion:candidate_main", "try a package beside the current one, without answering with it"),
        "promote": Verb("service.promotion:promote_main", "answer with another package of a model, once it was compared"),
        "rollback": Verb("service.promotion:rollback_main", "answer with the package before the current one again"),
    },
    "work beside an archive (PACS)": {
        "watch": Verb("service.watch:main", "analyse what arrives in an archive (PACS) and store the results there"),
        "receive": Verb(
            "service.receive:main", "take images by C-STORE, analyse them and store the results in the archive", "dimse"
        ),
        "folder": Verb("service.folders:main", "analyse a folder of DICOM files into a folder of results, as a router's module"),
    },
    "operate the service": {
        "token": Verb("service.tokens:main", "create, replace or revoke a bearer token"),
        "audit": Verb("service.audit:main", "list who read or changed what"),
        "erase": Verb("service.erase:main", "remove all that there is of a patient"),
        "backup": Verb("service.backup:backup_main", "write the whole state into a folder, while the service runs"),
        "restore": Verb("service.backup:restore_main", "make the state folder of a backup"),
        "migrate-database": Verb("service.migrate_database:main", "copy a site's SQLite database into PostgreSQL", "postgresql"),
    },
}
"""What a verb is for -> verb -> what it is."""

VERBS: dict[str, Verb] = {name: verb for group in GROUPS.values() for name, verb in group.items()}
"""All of them."""

EXTRAS = dict.fromkeys(("torch", "lightning", "monai", "sklearn", "matplotlib", "onnxscript"), "train") | {
    "pynetdicom": "dimse", "pyarrow": "score", "ray": "score",
}  # fmt: skip
"""Library -> the extra that brings it."""
EXAMPLES = ("overread example --out .", "overread predict chest-phantom.dcm --out results.csv")
"""What can be tried at once; the second takes what the first writes."""


def usage(group: str = "") -> str:
    """Return the text of ``overread --help``, or of a group of verbs, such as ``overread train --help``."""
    lines = [f"usage: overread {group}VERB ...", ""]
    for title, verbs in GROUPS.items():
        own = {name: verb for name, verb in verbs.items() if name.startswith(group)}
        lines += [f"{title}:", *(_line(name, verb) for name, verb in own.items()), ""] if own else []
    listed = [name for name in VERBS if name.startswith(group)]
    if any(VERBS[name].needs for name in listed):
        lines.append("[train] and the like: pip install -e '.[train]' brings what the verb needs.")
    lines += ["'overread VERB --help' tells more, with an example.", ""]
    if group:
        return "\n".join([*lines, "example:", f"  overread {listed[0]} --help"])
    return "\n".join([*lines, "examples:", *(f"  {example}" for example in EXAMPLES)])


def _line(name: str, verb: Verb) -> str:
    return f"  {name:<17} {verb.summary}" + (f" [{verb.needs}]" if verb.needs else "")


def main(argv: list[str] | None = None) -> int:
    """Run a verb.

    Returns
    -------
    int
        0 done, 1 done with failures that the output names, 2 refused or misused, 130 interrupted.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in {"-h", "--help", "help"}:
        print(usage())
        return 0 if arguments else 2
    words = 2 if " ".join(arguments[:2]) in VERBS else 1
    verb = " ".join(arguments[:words])
    if verb not in VERBS:
        group = f"{verb} " if any(known.startswith(f"{verb} ") for known in VERBS) else ""
        if group and arguments[1:2] in (["-h"], ["--help"]):
            print(usage(group))
            return 0
        print(f"overread: no verb {' '.join(arguments[:2] if group else [verb])!r}\n\n{usage(group)}", file=sys.stderr)
        return 2
    module, function = VERBS[verb].door.split(":")
    try:
        return int(getattr(importlib.import_module(module), function)(arguments[words:]))
    except Refusal as refusal:
        print(f"overread {verb}: {refusal}", file=sys.stderr)
        return 2
    except ModuleNotFoundError as error:
        extra = EXTRAS.get((error.name or "").split(".")[0])
        if extra is None:
            raise
        print(f"overread {verb}: {error.name} is not installed; pip install -e '.[{extra}]' brings it", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"overread {verb}: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
