"""``overread labels export`` and ``overread labels import``."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from models.card import ModelCard, SegmenterCard, read_package
from models.command import command_parser
from models.errors import Refusal
from service.audit import moment
from service.kept import Kept
from service.label_export import Exporter, Wish
from service.label_import import import_labels
from service.label_studio_tasks import CONFIG, write_tasks
from service.labels import Labels
from service.pseudonyms import Pseudonyms, read_key
from service.settings import Settings, read_settings
from service.store import Store


@contextmanager
def _opened() -> Iterator[tuple[Settings, Store]]:
    settings = read_settings()
    mask = os.umask(0o077)  # what is written holds images of patients
    store = Store(settings.store)
    try:
        yield settings, store
    finally:
        store.close()
        os.umask(mask)


def _card(settings: Settings, name: str | None) -> ModelCard | SegmenterCard:
    """Return the card of a model of the settings; None is the first, which is the default everywhere."""
    cards = [read_package(folder)[0] for folder in settings.models]
    for card in cards:
        if name in (None, card.name):
            return card
    raise Refusal("unknown_model", f"The models of the settings are {', '.join(card.name for card in cards)}.")


def export_main(argv: list[str]) -> int:
    """Run ``overread labels export``; returns 0."""
    parser = command_parser(
        "labels export",
        "Write what is decided as a label package for overread train, or what waits as tasks for Label Studio.",
        "overread labels export --out labels-2026-07",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, metavar="FOLDER", help="the label package; must not exist")
    target.add_argument("--label-studio", type=Path, metavar="FILE", help=f"the tasks, JSON, with {CONFIG} beside them")
    parser.add_argument("--model", metavar="NAME", help="whose images; needed where there are labels for several")
    parser.add_argument("--since", type=moment, metavar="TIME", help="only what was decided since, such as 2026-07-01 (UTC)")
    parser.add_argument("--reader-names", action="store_true", help="readers by their names, not by pseudonyms")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="with --label-studio: the images as files there")
    parser.add_argument("--leave-out-burned-in", action="store_true", help="go without images that are said to hold writing")
    options = parser.parse_args(argv)
    with _opened() as (settings, store):
        kept = Kept(settings.kept)
        if options.label_studio is not None:
            if options.since is not None or options.reader_names:
                parser.error("--since and --reader-names go with --out")
            card = _card(settings, options.model)
            number = write_tasks(
                store, kept, card, options.label_studio, options.images, leave_out_burned_in=options.leave_out_burned_in
            )
            print(f"{options.label_studio}: {number} tasks; paste {CONFIG} beside it into the project's labelling interface")
            return 0
        if options.images is not None:
            parser.error("--images goes with --label-studio")
        wish = Wish(options.model, options.since, options.reader_names, options.leave_out_burned_in)
        package = Exporter(store, kept, Pseudonyms(read_key(settings.pseudonym_key))).write(wish, options.out)
    labels = package.labels
    unknown = sum(each.burned_in == "unknown" for each in labels.images)
    counts = ", ".join(f"{number} {name}" for name, number in labels.counts().items())
    print(f"{options.out}: {len(labels.images)} images ({counts}), digest {package.sha256}")
    if unknown:
        print(f"{unknown} of them do not say whether writing is burned into their pixels: look before they leave the house")
    for why, number in sorted(labels.left_out.items()):
        print(f"{number} left out: {why}")
    for each in labels.agreement:
        value = "not defined" if each.value is None else f"{each.value:.2f}"
        print(f"{each.readers[0]} and {each.readers[1]}, {each.n} images: {each.measure} {value}")
    return 0


def import_main(argv: list[str]) -> int:
    """Run ``overread labels import``; returns 0."""
    parser = command_parser(
        "labels import",
        "Store labels that were given elsewhere: a CSV with the columns image_sha256 and label, or one image's marks "
        "as GeoJSON from QuPath. What is stored already is not stored again.",
        "overread labels import labels.csv --reader 'Dr. Weiss'",
    )
    parser.add_argument("file", type=Path, metavar="FILE", help=".csv, or .geojson or .json named by the image's digest")
    parser.add_argument("--reader", required=True, metavar="NAME", help="who gave them, as the service shall name them")
    parser.add_argument("--model", metavar="NAME", help="whose images they are; default: the first of the settings")
    parser.add_argument("--image", metavar="DIGEST", help="of which image marks are, where the file is not named by it")
    parser.add_argument("--correct", action="store_true", help="replace the reader's own earlier labels where they differ")
    options = parser.parse_args(argv)
    reader = options.reader.strip()
    if not 0 < len(reader) <= 64 or not reader.isprintable():
        raise Refusal("config_invalid", "--reader must be a name of 1 to 64 characters.")
    with _opened() as (settings, store):
        name = _card(settings, options.model).name
        number = import_labels(
            Labels(store, settings.readers), options.file, reader, name, options.image, corrects=options.correct
        )
    print(f"{number} labels of {reader} are stored")
    return 0
