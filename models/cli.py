"""The ``overread`` command: a table of verbs, each imported only when called, so that no room imports another."""

from __future__ import annotations

import importlib
import sys

from models.errors import Refusal

VERBS: dict[str, tuple[str, str]] = {
    "serve": ("service.serve:main", "serve the shipped models over HTTP"),
    "predict": ("models.batch:main", "predict for files or folders, without a server"),
    "score": ("service.score:main", "score a whole archive into Parquet, on this machine or a Ray cluster"),
    "select": ("models.pool:main", "choose what to annotate of a pool of images"),
    "certify": ("models.certify:main", "measure a model at a site, with intervals, from a small sample of labels"),
    "certify worklist": ("service.certify:main", "measure it from the labels of the worklist's random share"),
    "plan": ("training.plan:main", "how many labels a target needs, from a learning curve of your own data"),
    "example": ("models.example:main", "write a drawn chest X-ray as DICOM, to have something to send"),
    "watch": ("service.watch:main", "analyse what arrives in an archive (PACS) and store the results there"),
    "drift": ("service.health:main", "tell whether a site's scans have changed, or begin anew after a known change"),
    "receive": ("service.receive:main", "take images by C-STORE, analyse them and store the results in the archive"),
    "folder": ("service.folders:main", "analyse a folder of DICOM files into a folder of results, as a router's module"),
    "promote": ("service.promotion:promote_main", "answer with another package of a model, once it was compared"),
    "candidate": ("service.promotion:candidate_main", "try a package beside the current one, without answering with it"),
    "rollback": ("service.promotion:rollback_main", "answer with the package before the current one again"),
    "labels export": ("service.label_commands:export_main", "write labels as a package to train with, or tasks for Label Studio"),
    "labels import": ("service.label_commands:import_main", "store labels that were given elsewhere, from CSV or QuPath"),
    "sign": ("models.signature:main", "sign a model package that was reviewed"),
    "token": ("service.tokens:main", "create, replace or revoke a bearer token"),
    "audit": ("service.audit:main", "list who read or changed what"),
    "erase": ("service.erase:main", "remove all that there is of a patient"),
    "backup": ("service.backup:backup_main", "write the whole state into a folder, while the service runs"),
    "restore": ("service.backup:restore_main", "make the state folder of a backup"),
    "migrate-database": ("service.migrate_database:main", "copy a site's SQLite database into PostgreSQL"),
    "train classifier": ("training.classifier:main", "train a classifier and its loss-prediction module"),
    "train segmenter": ("training.segmenter:main", "train a segmenter from points or masks"),
    "adapt": ("training.adapt:main", "adapt a trained classifier to a new hospital, without labels or with a few"),
    "simulate": ("training.simulate:main", "replay rounds of annotation on labelled images: what would choosing have saved?"),
    "export": ("training.export:main", "export a trained model to ONNX"),
    "calibrate": ("training.calibrate:main", "fit units and limits on held-out images, with the exported graph"),
    "evaluate": ("training.evaluate:main", "measure the exported graph, or check a released card"),
    "release": ("training.release:main", "write the model package: model.onnx and card.json"),
}
"""Verb -> ("module:function", what it does). The function takes the remaining arguments and returns an exit code."""

EXTRAS = dict.fromkeys(("torch", "lightning", "monai", "sklearn", "matplotlib", "onnxscript"), "train") | {
    "pynetdicom": "dimse", "pyarrow": "score", "ray": "score",
}  # fmt: skip
"""Library -> the extra that brings it."""


def usage(group: str = "") -> str:
    """Return the text of ``overread --help``, or of a group of verbs, such as ``overread train --help``."""
    own = {verb: summary for verb, (_, summary) in VERBS.items() if verb.startswith(group)}
    lines = [f"  {verb:<17} {summary}" for verb, summary in own.items()]
    more = ["'overread VERB --help' tells more, with an example.", "", "example:", f"  overread {next(iter(own))} --help"]
    return "\n".join([f"usage: overread {group}VERB ...", "", *lines, "", *more])


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
    module, function = VERBS[verb][0].split(":")
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
