"""An answer as a structured report: Comprehensive 3D SR, template TID 1500 "Measurement Report" (PS3.16).

One measurement group holds the doubts and the verdict, one more each finding; what has a place in the image (objects, regions in
doubt) is a planar region of interest each, with its outline as spatial coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import highdicom.sr as hd
import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

import models
from service import dicom_codes as own
from service.dicom_results import (
    MANUFACTURER,
    NOT_FOR_DIAGNOSIS,
    REPORT,
    Commit,
    Written,
    check_source,
    dress,
    make_uid,
    own_scheme,
    stand_in,
    uids_of,
)
from service.schemas import Answer, ObjectAnswer, SegmentationAnswer, Tile

OBJECTS = 20
"""How many objects are outlined at most, the largest first: thousands of outlines take long to write, and to open."""

_Group = hd.MeasurementsAndQualitativeEvaluations | hd.PlanarROIMeasurementsAndQualitativeEvaluations


def structured_report(
    header: Dataset, answer: Answer | SegmentationAnswer, commit: Commit, replaces: Written | None = None
) -> Dataset:
    """Write an answer as a structured report: complete, preliminary and unverified, in a series of its own.

    Parameters
    ----------
    header : Dataset
        Of the source image, as :attr:`models.image.Image.header`.
    answer : Answer or SegmentationAnswer
        About this image.
    commit : Commit
        Of the answer's verdict.
    replaces : Written or None
        The earlier report of the same image that this one takes the place of; it is named as the predecessor document.

    Returns
    -------
    Dataset
        With its file meta information. The same arguments give the same bytes.

    Raises
    ------
    Refusal
        ``inconsistent_image`` or ``no_pixel_data`` if the header lacks what the report must repeat of it.
    ValueError
        If the answer is about another image.
    """
    check_source(header, answer)
    source = stand_in(header)
    report = Dataset()
    # The template's items as they are: highdicom's own document class copies and parses them twice, which takes twice as long as
    # making them
    report.update(_measurement_report(source, answer, commit)[0])
    report.StudyInstanceUID = source.StudyInstanceUID
    report.CompletionFlag, report.PreliminaryFlag, report.VerificationFlag = "COMPLETE", "PRELIMINARY", "UNVERIFIED"
    report.PerformedProcedureCodeSequence, report.ReferencedPerformedProcedureStepSequence = [], []
    evidence = _reference(source.SeriesInstanceUID, source.SOPClassUID, source.SOPInstanceUID)
    report.CurrentRequestedProcedureEvidenceSequence = [_of_study(source, evidence)]
    if replaces is not None:
        earlier = _reference(replaces.series_instance_uid, REPORT.sop_class, replaces.sop_instance_uid)
        report.PredecessorDocumentsSequence = [_of_study(source, earlier)]
    report.CodingSchemeIdentificationSequence = own_scheme()
    dress(report, REPORT, header, answer, commit)
    return report


def to_graphic(points: ArrayLike, rows: int, columns: int) -> NDArray[np.float32]:
    r"""Turn positions into DICOM's (column, row) pairs of spatial coordinates; the only place that does.

    Parameters
    ----------
    points : array_like, shape (V, 2)
        (x, y) in original pixels, corner origin.
    rows, columns : int
        Of the image: DICOM allows no coordinate outside it.

    Notes
    -----
    PS3.3, C.18.6: 0.0\0.0 is the top left corner of the top left pixel, and 1.0\1.0 its bottom right corner. That is our own
    origin, so nothing is shifted. (Where a pixel's centre has whole coordinates, as in scikit-image, half a pixel would be.)
    """
    return np.clip(np.asarray(points, np.float32), 0, np.array([columns, rows], np.float32))


def _measurement_report(source: Dataset, answer: Answer | SegmentationAnswer, commit: Commit) -> hd.MeasurementReport:
    model = answer.model
    groups = _Groups(source, answer, commit)
    measured: list[_Group] = [groups.doubts(answer)]
    notes: list[str] = []
    if isinstance(answer, Answer):
        measured += groups.classification(answer)
    else:
        regions, notes = groups.segmentation(answer)
        measured += regions
    content = hd.MeasurementReport(
        observation_context=_observer(model.sha256, f"{model.name} {model.version}"),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=measured,
        title=codes.DCM.ImagingMeasurementReport,
    )
    use = model.intended_use
    notes = [f"{NOT_FOR_DIAGNOSIS}. {use['statement']} Not for: {use['not_for']}", *notes]
    for text in notes:  # TID 1500 is extensible
        content[0].ContentSequence.append(hd.TextContentItem(codes.DCM.Comment, text, hd.RelationshipTypeValues.CONTAINS))
    return content


@lru_cache(64)
def _observer(model_sha256: str, model_name: str) -> hd.ObservationContext:
    device = hd.DeviceObserverIdentifyingAttributes(
        uid=make_uid("device", model_sha256),
        name=f"Overread {models.__version__}",
        manufacturer_name=MANUFACTURER,
        model_name=model_name,
        serial_number=model_sha256,
    )
    return hd.ObservationContext(observer_device_context=hd.ObserverContext(codes.DCM.Device, device))


class _Groups:
    """Measurement groups about one source image, each with tracking identifiers and its source."""

    def __init__(self, source: Dataset, answer: Answer | SegmentationAnswer, commit: Commit) -> None:
        self.source = source
        self.report_uid = uids_of(REPORT, answer, commit).sop_instance_uid
        model = answer.model
        self.algorithm = hd.AlgorithmIdentification(
            name=model.name,
            version=model.version,
            manufacturer=MANUFACTURER,
            parameters=[f"package_sha256={model.sha256}", f"triage_sha256={commit.triage_sha256}"],
        )
        self.loss_unit = own.NATS if isinstance(answer, Answer) else own.ONE

    def doubts(self, answer: Answer | SegmentationAnswer) -> hd.MeasurementsAndQualitativeEvaluations:
        """Return the group of what is said about the image as a whole."""
        measurements = [*self._doubt(answer), _measure(own.ENTROPY, answer.entropy, own.NATS)]
        if isinstance(answer, Answer) and answer.predicted_loss_unseen is not None:
            measurements.append(_measure(own.PREDICTED_LOSS_UNSEEN, answer.predicted_loss_unseen, own.NATS))
        evaluations = [_evaluate(own.VERDICT, own.VERDICTS[answer.verdict])]
        evaluations += [_evaluate(own.REASON, own.REASON_CODES[reason.code]) for reason in answer.reasons]
        if isinstance(answer, SegmentationAnswer) and answer.quantities is not None:
            found = answer.quantities
            measurements.append(_measure(own.COUNT, found.count, own.ONE))
            if found.area_fraction is not None:
                measurements.append(_measure(own.AREA_FRACTION, found.area_fraction, own.ONE))
            if found.density_per_mm2 is not None:
                measurements.append(_measure(own.DENSITY, found.density_per_mm2, own.PER_MM2))
            if found.density_per_megapixel is not None:
                measurements.append(_measure(own.DENSITY, found.density_per_megapixel, own.PER_MEGAPIXEL))
        return self._group("image", own.IMAGE_DOUBT, measurements, evaluations)

    def classification(self, answer: Answer) -> list[hd.MeasurementsAndQualitativeEvaluations]:
        """Return a group a finding."""
        groups = []
        for number, finding in enumerate(answer.findings, 1):
            call = own.POSITIVE if finding.positive else own.NEGATIVE
            groups.append(
                self._group(
                    f"finding {number}",
                    own.label_code(finding.label),
                    [
                        _measure(own.PROBABILITY, finding.probability, own.ONE),
                        _measure(own.OPERATING_POINT, finding.operating_point, own.ONE),
                    ],
                    [_evaluate(own.CALL, own.NOT_CALLED if answer.verdict == "refuse" else call)],
                )
            )
        return groups

    def segmentation(
        self, answer: SegmentationAnswer
    ) -> tuple[list[hd.PlanarROIMeasurementsAndQualitativeEvaluations], list[str]]:
        """Return a group a region in doubt and an object, and what is to be said of those left out."""
        regions = [self._region(number, tile) for number, tile in enumerate(answer.doubtful_regions, 1)]
        largest = sorted(answer.objects, key=lambda item: -item.area)[:OBJECTS]
        objects = [self._object(number, item, answer.object_label) for number, item in enumerate(largest, 1)]
        notes = []
        if len(largest) < len(answer.objects):
            notes.append(f"The {len(largest)} largest of {len(answer.objects)} objects are outlined here.")
        if answer.region is not None:
            x, y, width, height = answer.region
            notes.append(f"Only a part of the image was analysed: column {x}, row {y}, {width} columns, {height} rows.")
        return [*regions, *objects], notes

    def _region(self, number: int, tile: Tile) -> hd.PlanarROIMeasurementsAndQualitativeEvaluations:
        left, top, right, bottom = tile.x, tile.y, tile.x + tile.width, tile.y + tile.height
        corners = [(left, top), (right, top), (right, bottom), (left, bottom)]
        return self._planar(f"region {number}", own.REGION_DOUBT, corners, self._doubt(tile))

    def _object(self, number: int, item: ObjectAnswer, label: str) -> hd.PlanarROIMeasurementsAndQualitativeEvaluations:
        measurements = [_measure(own.AREA, item.area, own.PIXELS), _measure(own.SCORE, item.score, own.ONE)]
        return self._planar(f"object {number}", own.label_code(label), item.polygon, measurements)

    def _doubt(self, of: Answer | SegmentationAnswer | Tile) -> list[hd.Measurement]:
        return [
            _measure(own.PREDICTED_LOSS, of.predicted_loss, self.loss_unit),
            _measure(own.LOSS_PERCENTILE, of.loss_percentile, own.PERCENT),
            _measure(own.DOMAIN_DISTANCE, of.domain_distance, own.ONE),
            _measure(own.DOMAIN_PERCENTILE, of.domain_percentile, own.PERCENT),
        ]

    def _group(
        self,
        name: str,
        finding: own.Code,
        measurements: Sequence[hd.Measurement],
        evaluations: Sequence[hd.QualitativeEvaluation],
    ) -> hd.MeasurementsAndQualitativeEvaluations:
        return hd.MeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking(name),
            finding_type=_concept(finding),
            algorithm_id=self.algorithm,
            measurements=measurements,
            qualitative_evaluations=evaluations,
            source_images=[hd.SourceImageForMeasurementGroup(self.source.SOPClassUID, self.source.SOPInstanceUID)],
        )

    def _planar(
        self, name: str, finding: own.Code, polygon: ArrayLike, measurements: Sequence[hd.Measurement]
    ) -> hd.PlanarROIMeasurementsAndQualitativeEvaluations:
        outline = to_graphic(polygon, self.source.Rows, self.source.Columns)
        return hd.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=self._tracking(name),
            referenced_region=hd.ImageRegion(
                graphic_type=hd.GraphicTypeValues.POLYLINE,
                graphic_data=np.concatenate([outline, outline[:1]]),  # closed, as an area must be
                source_image=hd.SourceImageForRegion(self.source.SOPClassUID, self.source.SOPInstanceUID),
            ),
            finding_type=_concept(finding),
            measurements=measurements,
        )

    def _tracking(self, name: str) -> hd.TrackingIdentifier:
        return hd.TrackingIdentifier(uid=make_uid("tracking", self.report_uid, name), identifier=name)


@lru_cache(512)
def _concept(code: own.Code) -> hd.CodedConcept:
    """Return a code's item; one and the same wherever the code stands, since nobody changes it."""
    value, scheme, meaning = code
    return hd.CodedConcept(value=value, scheme_designator=scheme, meaning=meaning)


def _measure(name: own.Code, value: float, unit: own.Code) -> hd.Measurement:
    return hd.Measurement(name=_concept(name), value=value, unit=_concept(unit))


def _evaluate(name: own.Code, value: own.Code) -> hd.QualitativeEvaluation:
    return hd.QualitativeEvaluation(name=_concept(name), value=_concept(value))


def _reference(series: str, sop_class: str, instance: str) -> Dataset:
    item, reference = Dataset(), Dataset()
    reference.ReferencedSOPClassUID, reference.ReferencedSOPInstanceUID = sop_class, instance
    item.SeriesInstanceUID, item.ReferencedSOPSequence = series, [reference]
    return item


def _of_study(source: Dataset, series: Dataset) -> Dataset:
    item = Dataset()
    item.StudyInstanceUID, item.ReferencedSeriesSequence = source.StudyInstanceUID, [series]
    return item
