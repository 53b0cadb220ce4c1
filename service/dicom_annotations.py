"""The objects of a slide as Microscopy Bulk Simple Annotations (PS3.3, A.87): every outline, with its area and its score."""

from __future__ import annotations

import numpy as np
from highdicom import AlgorithmIdentificationSequence
from highdicom.ann import (
    AnnotationCoordinateTypeValues,
    AnnotationGroup,
    AnnotationGroupGenerationTypeValues,
    GraphicTypeValues,
    Measurements,
    MicroscopyBulkSimpleAnnotations,
)
from highdicom.sr import CodedConcept
from numpy.typing import ArrayLike, NDArray
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from models.dicom_header import spacing_mm
from service import dicom_codes as own
from service.dicom_results import (
    ANNOTATIONS,
    MANUFACTURER,
    NOT_FOR_DIAGNOSIS,
    Commit,
    check_source,
    dress,
    is_slide,
    make_uid,
    own_scheme,
    placeholders,
    stand_in,
    uids_of,
)
from service.schemas import SegmentationAnswer


def bulk_annotations(header: Dataset, answer: SegmentationAnswer, commit: Commit) -> Dataset:
    """Write the objects of an answer about a slide: one group of outlines, and one of the region that was analysed.

    Parameters
    ----------
    header : Dataset
        Of the slide, as :attr:`models.image.Image.header`.
    answer : SegmentationAnswer
        About this slide, with at least one object.
    commit : Commit
        Of the answer's verdict.

    Returns
    -------
    Dataset
        With its file meta information. The same arguments give the same bytes.

    Raises
    ------
    Refusal
        ``inconsistent_image`` or ``no_pixel_data`` if the header lacks what the object must repeat of it.
    ValueError
        If the answer has no object, or is about another image, or that is no slide.
    """
    check_source(header, answer)
    if not is_slide(header) or not answer.objects:
        raise ValueError("only the objects of a slide are written as annotations")
    source = stand_in(header)
    source.FrameOfReferenceUID = make_uid("any")  # read, and not written where coordinates are those of pixels
    instance = uids_of(ANNOTATIONS, answer, commit).sop_instance_uid
    algorithm = AlgorithmIdentificationSequence(
        name=answer.model.name,
        family=codes.DCM.ArtificialIntelligence,
        version=answer.model.version,
        source=MANUFACTURER,
        parameters={"package_sha256": answer.model.sha256, "triage_sha256": commit.triage_sha256},
    )
    x, y, width, height = answer.region or (0, 0, source.Columns, source.Rows)
    area, unit = _areas(header, answer)
    objects = AnnotationGroup(
        number=1,
        uid=make_uid("annotations", instance, "objects"),
        label=answer.object_label[:64],
        description=f"{NOT_FOR_DIAGNOSIS}. Analysed: column {x}, row {y}, {width} columns, {height} rows of the slide.",
        annotated_property_category=codes.SCT.AnatomicalStructure,
        annotated_property_type=_concept(own.label_code(answer.object_label)),
        graphic_type=GraphicTypeValues.POLYGON,
        graphic_data=[to_matrix(item.polygon) for item in answer.objects],
        algorithm_type=AnnotationGroupGenerationTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
        measurements=[
            Measurements(_concept(own.AREA), area, _concept(unit)),
            Measurements(_concept(own.SCORE), np.array([item.score for item in answer.objects]), _concept(own.ONE)),
        ],
    )
    analysed = AnnotationGroup(
        number=2,
        uid=make_uid("annotations", instance, "region"),
        label="analysed region",
        description="Outside it nothing was looked for.",
        annotated_property_category=codes.SCT.SpatialAndRelationalConcept,
        annotated_property_type=_concept(own.ANALYSED),
        graphic_type=GraphicTypeValues.POLYGON,  # some readers know no rectangle, and give the whole object up
        graphic_data=[to_matrix([(x, y), (x + width, y), (x + width, y + height), (x, y + height)])],
        algorithm_type=AnnotationGroupGenerationTypeValues.AUTOMATIC,
        algorithm_identification=algorithm,
    )
    written = MicroscopyBulkSimpleAnnotations(
        source_images=[source],
        annotation_coordinate_type=AnnotationCoordinateTypeValues.SCOORD,
        annotation_groups=[objects, analysed],
        content_label="ANNOTATIONS",
        content_description=f"{NOT_FOR_DIAGNOSIS.capitalize()}: {answer.object_label}"[:64],
        **placeholders(),
    )
    written.Laterality = header.get("Laterality")  # type 2C
    written.CodingSchemeIdentificationSequence = own_scheme()
    dress(written, ANNOTATIONS, header, answer, commit)
    return written


def to_matrix(points: ArrayLike) -> NDArray[np.float32]:
    r"""Turn positions into coordinates of annotations in the total pixel matrix; the only place that does.

    Parameters
    ----------
    points : array_like, shape (V, 2)
        (x, y) in the slide's pixels, corner origin.

    Notes
    -----
    Image-relative coordinates have their origin at the upper left corner of the upper left pixel, whose centre is 0.5\0.5 (PS3.3,
    C.10.5.1 and C.18.6.1, for a Pixel Origin Interpretation of VOLUME with respect to the matrix): our own origin, so nothing is
    shifted. Whole and half pixels are exact up to 8 million, which no slide has on a side.
    """
    return np.asarray(points, np.float32)


def _areas(header: Dataset, answer: SegmentationAnswer) -> tuple[NDArray[np.float64], own.Code]:
    """Return the objects' areas, in square micrometres where their quantities are, else in pixels."""
    area, spacing = np.array([item.area for item in answer.objects], np.float64), spacing_mm(header)
    if spacing is None or answer.quantities is None or answer.quantities.area_um2 is None:
        return area, own.PIXELS
    return area * (1000 * spacing[0]) * (1000 * spacing[1]), own.UM2


def _concept(code: own.Code) -> CodedConcept:
    value, scheme, meaning = code
    return CodedConcept(value, scheme, meaning)
