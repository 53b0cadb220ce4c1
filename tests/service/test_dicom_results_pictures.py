"""The segmentation holds the mask, and the secondary capture shows the image as it is meant, with what the answer says."""

from __future__ import annotations

import base64
import io
from typing import Any

import highdicom.seg as hd
import numpy as np
import PIL.Image
import pydicom
import pytest
from PIL import ImageDraw, ImageFont
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, SecondaryCaptureImageStorage

from models.errors import Refusal
from models.image import Image
from models.imaging import read_image
from service.dicom_pictures import CAPTURE_SIDES, DOUBT_COLOUR, secondary_capture, segmentation_object
from service.dicom_report import structured_report
from service.dicom_results import make_uid
from service.schemas import Heatmap, SegmentationAnswer
from tests.service.dicom_sources import (
    COLUMNS,
    COMMIT,
    ROWS,
    box,
    classified,
    header_of,
    labels_of,
    read_back,
    segmented,
    source,
)
from tests.service.discs import decoded, draw_discs

GREEN = (0, 255, 0)
SCALE = CAPTURE_SIDES[0] / COLUMNS
HEIGHT = round(ROWS * SCALE)


def picture(capture: Dataset) -> np.ndarray[Any, Any]:
    """Return the drawn image, without the text below it."""
    return read_back(capture).pixel_array[:HEIGHT]


def warm(pixels: Any) -> Heatmap:
    stream = io.BytesIO()
    PIL.Image.fromarray(pixels).save(stream, "PNG")
    return Heatmap(label="pneumonia", media_type="image/png", peak=1.0, data=base64.b64encode(stream.getvalue()).decode())


def test_the_mask_comes_back() -> None:
    image = source()
    labels = labels_of(image)
    written = read_back(segmentation_object(header_of(image), segmented(image), COMMIT, labels))
    assert np.array_equal(written.pixel_array, labels > 0)
    assert (written.Rows, written.Columns, written.NumberOfFrames, written.SegmentationType) == (ROWS, COLUMNS, 1, "BINARY")
    (segment,) = written.SegmentSequence
    assert segment.SegmentAlgorithmType == "AUTOMATIC"
    assert segment.SegmentedPropertyTypeCodeSequence[0].CodeValue == "84640000"
    assert "CodingSchemeIdentificationSequence" not in written, "no code of our own is in it"
    parsed = hd.Segmentation.from_dataset(written)
    uid = str(header_of(image).SOPInstanceUID)
    frames = parsed.get_pixels_by_source_instance([uid], combine_segments=True, assert_missing_frames_are_empty=True)
    assert np.array_equal(frames[0], labels > 0)


def test_the_mask_of_a_region_lies_where_the_region_is() -> None:
    image = source()
    labels = np.zeros((20, 30), np.int32)
    labels[0, 0], labels[19, 29] = 1, 2
    answer = segmented(image, region=(40, 50, 30, 20))
    written = read_back(segmentation_object(header_of(image), answer, COMMIT, labels))
    assert np.argwhere(written.pixel_array).tolist() == [[50, 40], [69, 69]]
    with pytest.raises(ValueError, match="another size"):
        segmentation_object(header_of(image), answer, COMMIT, labels_of(image))


def test_an_image_without_objects_has_an_empty_mask() -> None:
    image = source()
    answer = segmented(image, objects=[], object_label="glomerulus")
    written = read_back(segmentation_object(header_of(image), answer, COMMIT, np.zeros((ROWS, COLUMNS), np.int32)))
    assert not written.pixel_array.any()
    assert written.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99OVERREAD"


def test_nothing_is_segmented_under_refuse() -> None:
    image = source()
    with pytest.raises(ValueError, match="refuse"):
        segmentation_object(header_of(image), segmented(image, verdict="refuse"), COMMIT, labels_of(image))


def test_a_slice_keeps_its_place_and_a_radiograph_has_none() -> None:
    def placed(dataset: Dataset) -> None:
        dataset.FrameOfReferenceUID, dataset.SliceThickness = "1.2.3.4", 2
        dataset.ImageOrientationPatient, dataset.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [7, 8, 9]

    image = source(placed)
    written = read_back(segmentation_object(header_of(image), segmented(image), COMMIT, labels_of(image)))
    assert written.FrameOfReferenceUID == "1.2.3.4"
    assert written.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient == [7, 8, 9]
    assert written.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].PixelSpacing == [0.35, 0.35]
    image = source()
    written = read_back(segmentation_object(header_of(image), segmented(image), COMMIT, labels_of(image)))
    assert "FrameOfReferenceUID" not in written


@pytest.mark.parametrize("windowed", [True, False])
def test_monochrome1_is_shown_right(windowed: bool) -> None:
    def change(dataset: Dataset) -> None:
        if not windowed:
            del dataset.WindowCenter, dataset.WindowWidth

    def inverse(dataset: Dataset) -> None:
        change(dataset)
        dataset.PixelData = (4095 - np.frombuffer(dataset.PixelData, "<u2")).astype("<u2").tobytes()
        dataset.PhotometricInterpretation, dataset.PresentationLUTShape = "MONOCHROME1", "INVERSE"
        if windowed:
            dataset.WindowCenter = 4096 - dataset.WindowCenter

    def mislabelled(dataset: Dataset) -> None:
        change(dataset)
        dataset.PhotometricInterpretation, dataset.PresentationLUTShape = "MONOCHROME1", "INVERSE"

    plain, turned, wrong = (
        picture(secondary_capture(image, classified(image), COMMIT)).astype(int)
        for image in map(source, (change, inverse, mislabelled))
    )
    assert np.ptp(plain) > 50
    assert np.abs(plain - turned).max() <= 2
    assert np.abs(plain - wrong).max() > 50


def test_an_image_without_a_window_is_stretched() -> None:
    def dim(dataset: Dataset) -> None:
        del dataset.WindowCenter, dataset.WindowWidth
        dataset.PixelData = (np.frombuffer(dataset.PixelData, "<u2") // 40).astype("<u2").tobytes()

    image = source(dim)
    assert np.ptp(picture(secondary_capture(image, classified(image), COMMIT))) > 150


def test_outlines_lie_around_the_object() -> None:
    image = source()
    answer = segmented(image, objects=[box(20, 10, 60, 40)], doubtful_regions=[])
    drawn = picture(secondary_capture(image, answer, COMMIT))
    down, across = np.nonzero((drawn == GREEN).all(axis=2))
    edges = np.array([across.min(), down.min(), across.max() + 1, down.max() + 1])
    assert np.abs(edges - np.array([20, 10, 60, 40]) * SCALE).max() <= 1.5
    inside = drawn[round(20 * SCALE) : round(30 * SCALE), round(30 * SCALE) : round(50 * SCALE)]
    assert not (inside == GREEN).all(axis=2).any()


def test_regions_in_doubt_are_drawn() -> None:
    image = source()
    drawn = picture(secondary_capture(image, segmented(image, objects=[]), COMMIT))
    assert (drawn[0] == DOUBT_COLOUR).all()
    none = picture(secondary_capture(image, segmented(image, objects=[], doubtful_regions=[]), COMMIT))
    assert (none[..., 0] == none[..., 1]).all()


def test_the_heatmap_is_laid_over_the_evidence_only() -> None:
    evidence = np.zeros((ROWS, COLUMNS), np.uint8)
    evidence[:20, :24] = 255
    image = source()
    bare = picture(secondary_capture(image, classified(image), COMMIT)).astype(int)
    drawn = picture(secondary_capture(image, classified(image, heatmap=warm(evidence)), COMMIT)).astype(int)
    hot = (slice(0, round(19 * SCALE)), slice(0, round(23 * SCALE)))
    cold = (slice(round(21 * SCALE), None), slice(None))
    assert (drawn[hot][..., 0] > drawn[hot][..., 2] + 80).all()
    assert np.array_equal(drawn[cold], bare[cold])


def test_a_refused_image_has_nothing_drawn_on_it() -> None:
    image = source()
    everywhere = warm(np.full((ROWS, COLUMNS), 128, np.uint8))
    for answer in (classified(image, verdict="refuse", heatmap=everywhere), segmented(image, verdict="refuse", objects=[])):
        drawn = picture(secondary_capture(image, answer, COMMIT))
        assert (drawn[..., 0] == drawn[..., 1]).all()
    control = picture(secondary_capture(image, classified(image, heatmap=everywhere), COMMIT))
    assert (control[..., 0] != control[..., 1]).any()


def text(*lines: str) -> np.ndarray[Any, Any]:
    """Draw lines as they should stand below a picture."""
    canvas = PIL.Image.new("RGB", (CAPTURE_SIDES[0], 22 * len(lines)))
    for number, line in enumerate(lines):
        colour = DOUBT_COLOUR if number == 0 else (255, 255, 255)
        ImageDraw.Draw(canvas).text((8, 22 * number), line, colour, ImageFont.load_default(16))
    return np.asarray(canvas)


def test_the_text_says_what_the_answer_says() -> None:
    image = source()
    shown = read_back(secondary_capture(image, classified(image), COMMIT)).pixel_array[HEIGHT + 8 : -8]
    lines = [
        "NOT FOR DIAGNOSIS",
        "tiny 1.0.0",
        "Verdict: review (predicted_loss_high, uid_reused)",
        "pneumonia: 0.30 (positive at 0.25)",
        "nodule: 0.33 (negative at 0.50)",
        "Predicted loss: 0.300 nats, percentile 96",
    ]
    assert np.array_equal(shown, text(*lines))
    assert not np.array_equal(shown, text(*lines[:-1], "Predicted loss: 0.300 nats, percentile 97"))
    shown = read_back(secondary_capture(image, segmented(image), COMMIT)).pixel_array[HEIGHT + 8 : -8]
    assert np.array_equal(shown, text(*lines[:3], "2 x nucleus", "Predicted loss: 0.300 1 - Dice, percentile 96"))
    refused = read_back(secondary_capture(image, classified(image, verdict="refuse"), COMMIT)).pixel_array[HEIGHT + 8 : -8]
    assert np.array_equal(refused[22 * 3 : 22 * 4], text("", "Nothing is called.")[22:])


@pytest.mark.parametrize(("stated", "expected"), [("NO", "NO"), ("YES", "YES"), (None, None)])
def test_text_of_ours_does_not_identify_but_the_source_s_may(stated: str | None, expected: str | None) -> None:
    image = source(BurnedInAnnotation=stated)
    assert read_back(secondary_capture(image, classified(image), COMMIT)).get("BurnedInAnnotation") == expected


def test_attributes_of_a_secondary_capture() -> None:
    image = source(LossyImageCompression="01", LossyImageCompressionRatio=12, LossyImageCompressionMethod="ISO_10918_1")
    back = read_back(secondary_capture(image, classified(image), COMMIT))
    assert (list(back.ImageType), back.Modality, back.ConversionType) == (["DERIVED", "SECONDARY"], "OT", "WSD")
    assert (back.PhotometricInterpretation, back.BitsStored, back.SamplesPerPixel) == ("RGB", 8, 3)
    assert (back.LossyImageCompression, back.LossyImageCompressionRatio) == ("01", 12)
    assert list(back.PatientOrientation) == ["L", "F"]
    assert "PixelSpacing" not in back, "nothing may be measured in it"
    assert back.SourceImageSequence[0].PurposeOfReferenceCodeSequence[0].CodeValue == "121322"


def test_a_picture_that_is_not_dicom_has_no_study(draw: Any) -> None:
    image = read_image(draw())
    with pytest.raises(Refusal) as caught:
        secondary_capture(image, classified(source()), COMMIT)
    assert caught.value.code == "no_pixel_data"


def test_an_image_decoded_at_a_reduced_resolution(tmp_path: Any, data_root: Any) -> None:
    file = (data_root / "dicom" / "RG3_J2KR.dcm").read_bytes()
    reduced = read_image(file, target=(224, 224))
    assert max(reduced.pixels.shape) < max(reduced.rows, reduced.columns)
    capture = read_back(secondary_capture(reduced, classified(reduced), COMMIT))
    full = read_image(file)
    expected = read_back(secondary_capture(full, classified(full), COMMIT))
    assert max(capture.Columns, capture.Rows - 148) <= CAPTURE_SIDES[1]
    assert capture.pixel_array.shape == expected.pixel_array.shape
    difference = np.abs(capture.pixel_array.astype(int) - expected.pixel_array.astype(int))
    assert difference.mean() < 3


def colour_dicom() -> bytes:
    """Drawn discs as a colour secondary capture, as a scanner without a whole-slide format would send them."""
    pixels = np.asarray(draw_discs())
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = SecondaryCaptureImageStorage, make_uid("test").replace("2.25.", "1.2.")
    dataset.file_meta.MediaStorageSOPClassUID, dataset.file_meta.MediaStorageSOPInstanceUID = (
        dataset.SOPClassUID,
        dataset.SOPInstanceUID,
    )
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID, dataset.Modality = "1.2.3", "1.2.4", "SM"
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PlanarConfiguration = 3, "RGB", 0
    dataset.Rows, dataset.Columns = pixels.shape[:2]
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
    dataset.PixelData = pixels.tobytes()
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def test_the_answer_of_the_service(caller: Any) -> None:
    data = colour_dicom()
    response = caller.predict(data, "application/dicom", "?model=nuclei&label_image=true")
    answer = SegmentationAnswer.model_validate_json(response.text)
    assert answer.label_image is not None
    labels = decoded(answer.label_image.model_dump())
    image: Image = read_image(data)
    written = read_back(segmentation_object(header_of(image), answer, COMMIT, labels))
    assert np.array_equal(written.pixel_array, labels > 0)
    assert written.pixel_array.any()
    report = structured_report(header_of(image), answer, COMMIT)
    outlined = [item for item in report.iterall() if item.keyword == "GraphicData"]
    assert len(outlined) == len(answer.objects) + len(answer.doubtful_regions)
    drawn = read_back(secondary_capture(image, answer, COMMIT)).pixel_array
    assert (drawn == GREEN).all(axis=2).any()
