"""What viewers show of an answer: its segmentation, and a secondary capture where they show neither that nor the report."""

from __future__ import annotations

import base64
import io
import logging
import math
from dataclasses import replace

import numpy as np
import PIL.Image
from numpy.typing import NDArray
from PIL import ImageDraw, ImageFont
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

from models.dicom_header import spacing_mm
from models.errors import Refusal
from models.image import Image
from models.pictures import OUTLINE, shown_picture
from service import dicom_codes as own
from service.dicom_results import (
    CAPTURE,
    MANUFACTURER,
    MASK,
    NOT_FOR_DIAGNOSIS,
    Commit,
    check_source,
    dress,
    make_uid,
    own_scheme,
    placeholders,
    stand_in,
)
from service.schemas import Answer, Heatmap, SegmentationAnswer

CAPTURE_SIDES = (512, 1024)
"""Least and greatest longer side of the picture in a secondary capture, pixels; sources beyond are enlarged or reduced."""
DOUBT_COLOUR = (255, 160, 0)
_LINE, _MARGIN = 22, 8
_PERCENTILES = (0.5, 99.5)


def segmentation_object(header: Dataset, answer: SegmentationAnswer, commit: Commit, label_image: NDArray[np.int32]) -> Dataset:
    """Write a label image as a binary segmentation: one segment, of all objects.

    Parameters
    ----------
    header : Dataset
        Of the source image, as :attr:`models.image.Image.header`.
    answer : SegmentationAnswer
        About this image.
    commit : Commit
        Of the answer's verdict.
    label_image : ndarray, integers, shape (rows, columns)
        0 background, 1..N objects; of the answer's region where it has one. Objects that touch become one area.

    Returns
    -------
    Dataset
        With its file meta information, one frame of the source's size. The same arguments give the same bytes.

    Raises
    ------
    Refusal
        ``inconsistent_image`` or ``no_pixel_data`` if the header lacks what the object must repeat of it.
    ValueError
        Under the verdict ``refuse``, for which nothing is called, if the label image has another size, and if the answer is about
        another image.
    """
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import SegmentAlgorithmTypeValues, Segmentation, SegmentationTypeValues, SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    if answer.verdict == "refuse":
        raise ValueError("nothing is called under the verdict refuse")
    check_source(header, answer)
    library = logging.getLogger("highdicom")
    if library.level != logging.ERROR:
        library.setLevel(logging.ERROR)  # its other lines hold UIDs
    source = stand_in(header)
    _place(source, header)
    x, y, width, height = answer.region or (0, 0, source.Columns, source.Rows)
    if label_image.shape != (height, width):
        raise ValueError("the label image has another size than what was segmented")
    mask = np.zeros((source.Rows, source.Columns), np.uint8)
    mask[y : y + height, x : x + width] = label_image > 0
    value, scheme, meaning = own.label_code(answer.object_label)
    segment = SegmentDescription(
        segment_number=1,
        segment_label=answer.object_label[:64],
        segmented_property_category=codes.SCT.AnatomicalStructure,
        segmented_property_type=CodedConcept(value, scheme, meaning),
        algorithm_type=SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=AlgorithmIdentificationSequence(
            name=answer.model.name,
            family=codes.DCM.ArtificialIntelligence,
            version=answer.model.version,
            source=MANUFACTURER,
            parameters={"package_sha256": answer.model.sha256},
        ),
        tracking_uid=make_uid("segment", answer.result_id),
        tracking_id="segment 1",
    )
    written = Segmentation(
        source_images=[source],
        pixel_array=mask,
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[segment],
        content_label="SEGMENTATION",
        content_description=f"{NOT_FOR_DIAGNOSIS.capitalize()}: {answer.object_label}"[:64],
        content_creator_name="",
        **placeholders(),
    )
    organisation = make_uid("dimensions", answer.result_id)  # which would be another each time
    written.DimensionOrganizationSequence[0].DimensionOrganizationUID = organisation
    for index in written.DimensionIndexSequence:
        index.DimensionOrganizationUID = organisation
    if scheme == own.SCHEME:
        written.CodingSchemeIdentificationSequence = own_scheme()
    written.PatientOrientation = header.get("PatientOrientation")  # type 2C
    _lossy(written, header)
    dress(written, MASK, header, answer, commit)
    return written


def secondary_capture(image: Image, answer: Answer | SegmentationAnswer, commit: Commit) -> Dataset:
    """Draw an answer over the image, with the verdict and that it is not for diagnosis, as a colour secondary capture.

    Parameters
    ----------
    image : Image
        Read from DICOM.
    answer : Answer or SegmentationAnswer
        About this image. A classifier's heatmap is drawn where the answer has one.
    commit : Commit
        Of the answer's verdict.

    Returns
    -------
    Dataset
        8-bit RGB, with its file meta information. The same arguments give the same bytes.

    Raises
    ------
    Refusal
        ``no_pixel_data`` if the image does not come from DICOM, ``inconsistent_image`` if its header lacks what the object must
        repeat of it.
    ValueError
        If the answer is about another image.
    """
    if image.header is None:
        raise Refusal("no_pixel_data", "The image does not come from DICOM, so there is no study to store a result in.")
    check_source(image.header, answer)
    pixels = _draw(image, answer)
    capture = Dataset()
    capture.StudyInstanceUID = image.header.StudyInstanceUID
    capture.ConversionType = "WSD"
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.DerivationDescription = "Result of a model drawn over the source image; not for diagnosis, not to scale"
    reference, purpose = Dataset(), Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "121322", "DCM"
    purpose.CodeMeaning = "Source image for image processing operation"
    reference.ReferencedSOPClassUID = image.header.SOPClassUID
    reference.ReferencedSOPInstanceUID = image.header.SOPInstanceUID
    reference.PurposeOfReferenceCodeSequence = [purpose]
    capture.SourceImageSequence = [reference]
    # What the attribute means is text that tells who the patient is: ours does not, the source's pixels may
    if image.header.get("BurnedInAnnotation") in ("YES", "NO"):
        capture.BurnedInAnnotation = image.header.BurnedInAnnotation
    capture.SamplesPerPixel, capture.PhotometricInterpretation, capture.PlanarConfiguration = 3, "RGB", 0
    capture.Rows, capture.Columns = pixels.shape[:2]
    capture.BitsAllocated, capture.BitsStored, capture.HighBit, capture.PixelRepresentation = 8, 8, 7, 0
    capture.add_new("PixelData", "OB", pixels.tobytes() + b"\0" * (pixels.size % 2))
    capture.PatientOrientation = image.header.get("PatientOrientation")  # type 2C, and so is one of the lateralities
    laterality = "ImageLaterality" if image.header.get("ImageLaterality") else "Laterality"
    setattr(capture, laterality, image.header.get(laterality))
    _lossy(capture, image.header)
    dress(capture, CAPTURE, image.header, answer, commit)
    return capture


def _place(source: Dataset, header: Dataset) -> None:
    """Give a stand-in the source's place in the patient, where that is stated in full."""
    spacing = spacing_mm(header)
    frame, thickness = str(header.get("FrameOfReferenceUID") or "").strip(), header.get("SliceThickness")
    orientation, position = _numbers(header, "ImageOrientationPatient", 6), _numbers(header, "ImagePositionPatient", 3)
    if not frame or spacing is None or orientation is None or position is None:
        return
    if not isinstance(thickness, float) or not 0 < thickness < math.inf:
        return
    row, column = np.split(np.array(orientation), 2)
    if not np.allclose([row @ row, column @ column, row @ column], [1, 1, 0], atol=1e-3):
        return
    source.FrameOfReferenceUID, source.PositionReferenceIndicator = frame, header.get("PositionReferenceIndicator")
    source.ImageOrientationPatient, source.ImagePositionPatient = orientation, position
    source.SliceThickness, source.PixelSpacing = thickness, list(spacing)


def _numbers(header: Dataset, keyword: str, count: int) -> list[float] | None:
    value = header.get(keyword)
    if not isinstance(value, MultiValue) or len(value) != count:
        return None
    numbers = [float(part) for part in value]
    return numbers if np.isfinite(numbers).all() else None


def _lossy(dataset: Dataset, header: Dataset) -> None:
    """Say that the source was compressed with loss, where it was: what is derived from it is too."""
    lossy = header.get("LossyImageCompression") == "01"
    dataset.LossyImageCompression = "01" if lossy else "00"
    for keyword in ("LossyImageCompressionRatio", "LossyImageCompressionMethod"):
        if lossy and keyword in header:
            dataset[keyword] = header[keyword]


def _draw(image: Image, answer: Answer | SegmentationAnswer) -> NDArray[np.uint8]:
    """Return the picture, (rows, columns, 3), with a strip of text below it; of a slide, that of the region."""
    left, top, columns, rows = image.region or (0, 0, image.columns, image.rows)
    scale = float(np.clip(max(rows, columns), *CAPTURE_SIDES)) / max(rows, columns)
    size = max(1, round(columns * scale)), max(1, round(rows * scale))
    picture = PIL.Image.fromarray(_shown(image)).resize(size, PIL.Image.Resampling.BILINEAR, image.extent)
    if answer.verdict != "refuse":
        if isinstance(answer, SegmentationAnswer):
            pen = ImageDraw.Draw(picture)
            for tile in answer.doubtful_regions:
                x, y = tile.x - left, tile.y - top
                corners = (x * scale, y * scale, (x + tile.width) * scale - 1, (y + tile.height) * scale - 1)
                pen.rectangle(corners, outline=DOUBT_COLOUR, width=2)
            for item in answer.objects:
                # Pillow's pixels have whole numbers at their centres
                outline = [((x - left) * scale - 0.5, (y - top) * scale - 0.5) for x, y in item.polygon]
                pen.line([*outline, outline[0]], fill=OUTLINE)
        elif answer.heatmap is not None:
            picture = _warm(picture, answer.heatmap)
    lines = _lines(answer)
    if image.region is not None:
        lines.append(f"Of the slide: column {left}, row {top}, {columns} columns, {rows} rows")
    canvas = PIL.Image.new("RGB", (max(size[0], CAPTURE_SIDES[0]), size[1] + _LINE * len(lines) + 2 * _MARGIN))
    canvas.paste(picture)
    pen, font = ImageDraw.Draw(canvas), ImageFont.load_default(16)
    for number, line in enumerate(lines):
        colour = DOUBT_COLOUR if number == 0 else (255, 255, 255)
        pen.text((_MARGIN, size[1] + _MARGIN + _LINE * number), line.encode("ascii", "replace").decode(), colour, font)
    return np.asarray(canvas)


def _shown(image: Image) -> NDArray[np.uint8]:
    """Render the image for the eye: as the header says, else stretched between two percentiles where it has more than 8 bits."""
    how = image.rendering
    if image.pixels.dtype == np.uint8 and (how.low, how.high, how.table, how.chain) == (0, 255, None, None):
        return shown_picture(image.pixels, how)  # it is as it is to be shown
    shown = image.rendered()
    header = image.header if image.header is not None else Dataset()
    if how.high - how.low > 255 and "WindowWidth" not in header and "VOILUTSequence" not in header:
        low, high = np.percentile(shown[::4, ::4], _PERCENTILES)
        how = replace(how, low=float(low), high=float(high))
    return shown_picture(shown, how)


def _warm(picture: PIL.Image.Image, heatmap: Heatmap) -> PIL.Image.Image:
    """Lay the evidence over the picture, from transparent over red to yellow."""
    grey = PIL.Image.open(io.BytesIO(base64.b64decode(heatmap.data))).resize(picture.size, PIL.Image.Resampling.BILINEAR)
    # Pillow's integers: the same in floating point took as long as all the rest of the picture, several times over
    colour = PIL.Image.merge("RGB", (PIL.Image.new("L", picture.size, 255), grey, PIL.Image.new("L", picture.size, 0)))
    return PIL.Image.composite(colour, picture, grey.point([round(0.6 * value) for value in range(256)]))


def _lines(answer: Answer | SegmentationAnswer) -> list[str]:
    lines = [NOT_FOR_DIAGNOSIS, f"{answer.model.name} {answer.model.version}"]
    lines.append(f"Verdict: {answer.verdict} ({', '.join(reason.code for reason in answer.reasons)})")
    if answer.verdict == "refuse":
        lines.append("Nothing is called.")
    elif isinstance(answer, SegmentationAnswer):
        lines.append(f"{len(answer.objects)} x {answer.object_label}")
    else:
        lines += [
            f"{item.label}: {item.probability:.2f} ({'positive' if item.positive else 'negative'} at {item.operating_point:.2f})"
            for item in answer.findings
        ]
    unit = "nats" if isinstance(answer, Answer) else "1 - Dice"
    return [*lines, f"Predicted loss: {answer.predicted_loss:.3f} {unit}, percentile {answer.loss_percentile:.0f}"]
