"""From an instance's file to the committed result and the objects that the settings ask for, for all but the HTTP routes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pydicom.dataset import Dataset

from models.card import ModelCard
from models.image import Box, Image
from service.analysis import Site
from service.answers import Reply
from service.dicom_results import REPORT, Commit, Written, is_slide, uids_of
from service.schemas import SegmentationAnswer
from service.segmentation import restore
from service.wall import Upload
from service.wanted import Wanted

Earlier = Callable[[str, str], Written | None]
"""Called with a modality and a SOP Instance UID: the object of that modality that was stored last, if it is another one."""


def results(wanted: Sequence[str], image: Image, reply: Reply, commit: Commit, earlier: Earlier) -> list[Dataset]:
    """Write the objects for an answer.

    Parameters
    ----------
    wanted : sequence of str
        Some of "sr", "seg", "sc" and "ann". Segmentation and annotations are of objects: there is none of a classification, nor
        where no object is called. A slide has annotations, and every other image a segmentation, which has the image's size.
    image : Image
        The source.
    reply : Reply
        About it; its heatmap, where there is one, is drawn.
    commit : Commit
        Of the reply's verdict.
    earlier : Earlier
        What a report says that it takes the place of.

    Returns
    -------
    list of Dataset
        With their file meta information; the same arguments give the same bytes.

    Raises
    ------
    Refusal
        ``inconsistent_image`` or ``no_pixel_data`` if the header lacks what the objects must repeat of it.
    """
    assert image.header is not None
    answer = reply.answer()
    written: list[Dataset] = []
    # Each is imported where it is wanted: highdicom and the pictures take a second or two
    if "sr" in wanted:
        from service.dicom_report import structured_report

        before = earlier(REPORT.modality, uids_of(REPORT, answer, commit).sop_instance_uid)
        written.append(structured_report(image.header, answer, commit, before))
    found = answer if isinstance(answer, SegmentationAnswer) and answer.objects else None
    slide = is_slide(image.header)
    if "seg" in wanted and found is not None and not slide:
        from service.dicom_pictures import segmentation_object

        written.append(segmentation_object(image.header, found, commit, restore(reply.stored.result).label_image))
    if "ann" in wanted and found is not None and slide:
        from service.dicom_annotations import bulk_annotations

        written.append(bulk_annotations(image.header, found, commit))
    if "sc" in wanted:
        from service.dicom_pictures import secondary_capture

        written.append(secondary_capture(image, answer, commit))
    return written


def analyse(site: Site, data: bytes, earlier: Earlier, region: Box | None = None) -> tuple[Reply, list[Dataset]]:
    """Analyse a DICOM file with the model of ``pacs_model``, commit the result, and write the objects of ``pacs_results``.

    ``region`` is the part to analyse, as in :class:`service.wanted.Wanted`; of a slide there has to be one.

    Raises
    ------
    Refusal
        As :meth:`service.analysis.Site.analyse`, :meth:`service.analysis.Site.conclude` and :func:`results`.
    """
    settings = site.settings
    served = site.served(settings.pacs_model)
    heatmap = "sc" in settings.pacs_results and isinstance(served.predictor.card, ModelCard)
    wanted = Wanted(settings.pacs_model, heatmap=heatmap, region=region, site=settings.pacs_site)
    analysis = site.analyse(Upload(data, "application/dicom"), wanted, served)
    reply = site.conclude(analysis)
    limits = analysis.served.limits_sha256
    at = site.store.decided_at(reply.stored.result["id"], analysis.uid, limits)
    return reply, results(settings.pacs_results, analysis.image, reply, Commit(limits, at), earlier)
