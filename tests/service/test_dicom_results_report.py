"""The structured report says what the answer says, where it says it, and another library reads it so."""

from __future__ import annotations

import io
from typing import Any

import highdicom.sr as hd
import numpy as np
import pytest
from highdicom.spatial import ImageToReferenceTransformer, PixelToReferenceTransformer
from pydicom.dataset import Dataset
from skimage.draw import polygon2mask

from models.example import chest_phantom
from models.imaging import read_image
from models.triage import REASONS
from service import dicom_codes as own
from service.dicom_report import OBJECTS, structured_report, to_graphic
from service.dicom_results import MASK, REPORT, Commit, Written, dicom_bytes, uids_of
from service.schemas import Answer, SegmentationAnswer
from tests.contract.test_docs import rows as documented
from tests.service.dicom_sources import COLUMNS, COMMIT, ROWS, box, classified, header_of, read_back, segmented, source


def parse(report: Dataset) -> Any:
    """Read a report with highdicom, which parses TID 1500 and what is in it."""
    parsed = hd.srread(io.BytesIO(dicom_bytes(report)))
    assert isinstance(parsed, hd.Comprehensive3DSR)
    return parsed.content


def values(group: Any) -> dict[str, float]:
    return {item.name.value: item.value for item in group.get_measurements()}


def units(group: Any) -> dict[str, str]:
    return {item.name.value: item.unit.value for item in group.get_measurements()}


def calls(group: Any) -> list[tuple[str, str]]:
    return [(item.name.value, item.value.value) for item in group.get_qualitative_evaluations()]


def comments(report: Dataset) -> list[str]:
    return [item.TextValue for item in report.ContentSequence if item.ConceptNameCodeSequence[0].CodeMeaning == "Comment"]


def test_findings_doubts_and_verdict_are_those_of_the_answer() -> None:
    image = source()
    answer = classified(image, predicted_loss_unseen=1.25)
    doubt, pneumonia, nodule = parse(structured_report(header_of(image), answer, COMMIT)).get_image_measurement_groups()
    assert values(doubt) == {
        "PREDICTEDLOSS": answer.predicted_loss, "LOSSPERCENTILE": answer.loss_percentile,
        "DOMAINDISTANCE": answer.domain_distance, "DOMAINPERCENT": answer.domain_percentile, "ENTROPY": answer.entropy,
        "LOSSUNSEEN": answer.predicted_loss_unseen,
    }  # fmt: skip
    assert units(doubt) == {
        "PREDICTEDLOSS": "{nat}",
        "LOSSPERCENTILE": "%",
        "DOMAINDISTANCE": "1",
        "DOMAINPERCENT": "%",
        "ENTROPY": "{nat}",
        "LOSSUNSEEN": "{nat}",
    }
    assert calls(doubt) == [("VERDICT", "REVIEW"), ("REASON", "LOSSHIGH"), ("REASON", "UIDREUSED")]
    assert pneumonia.finding_type == hd.CodedConcept("233604007", "SCT", "Pneumonia")
    assert nodule.finding_type == hd.CodedConcept("LABEL:nodule", own.SCHEME, "nodule")
    assert values(pneumonia) == {"PROBABILITY": 0.1 + 0.2, "OPERATINGPOINT": 0.25}
    assert values(nodule) == {"PROBABILITY": 1 / 3, "OPERATINGPOINT": 0.5}
    assert [calls(group) for group in (pneumonia, nodule)] == [[("CALL", "10828004")], [("CALL", "260385009")]]
    for group in (doubt, pneumonia, nodule):
        (image_item,) = group.source_images
        assert image_item.referenced_sop_instance_uid == header_of(image).SOPInstanceUID


def test_a_refused_image_has_no_call_and_no_object() -> None:
    image = source()
    report = structured_report(header_of(image), classified(image, verdict="refuse"), COMMIT)
    _, *findings = parse(report).get_image_measurement_groups()
    assert [calls(group) for group in findings] == [[("CALL", "NOTCALLED")]] * 2
    answer = segmented(image, verdict="refuse", objects=[], quantities=None)
    content = parse(structured_report(header_of(image), answer, COMMIT))
    (doubt,) = content.get_image_measurement_groups()
    assert "OBJECTCOUNT" not in values(doubt)
    assert [group.finding_type.value for group in content.get_planar_roi_measurement_groups()] == ["REGIONDOUBT"]


def test_objects_regions_and_quantities() -> None:
    image = source()
    answer = segmented(image)
    content = parse(structured_report(header_of(image), answer, COMMIT))
    (doubt,) = content.get_image_measurement_groups()
    assert {name: values(doubt)[name] for name in ("OBJECTCOUNT", "OBJECTDENSITY", "AREAFRACTION")} == {
        "OBJECTCOUNT": 2, "OBJECTDENSITY": 0.125, "AREAFRACTION": 0.0625,
    }  # fmt: skip
    assert units(doubt)["OBJECTDENSITY"] == "/mm2"
    assert units(doubt)["PREDICTEDLOSS"] == "1"
    region, large, small = content.get_planar_roi_measurement_groups()
    assert values(region)["PREDICTEDLOSS"] == 0.7
    assert values(large) == {"42798000": answer.objects[0].area, "OBJECTSCORE": 0.9}
    assert values(small) == {"42798000": answer.objects[1].area, "OBJECTSCORE": 0.6}
    assert large.finding_type == hd.CodedConcept("84640000", "SCT", "Nucleus")
    corners = [(0, 0), (COLUMNS, 0), (COLUMNS, ROWS), (0, ROWS), (0, 0)]
    assert region.roi.value.tolist() == [list(corner) for corner in corners]
    assert large.roi.graphic_type == hd.GraphicTypeValues.POLYLINE


def test_density_without_a_spacing() -> None:
    image = source()
    quantities = segmented(image).quantities
    assert quantities is not None
    unknown = quantities.model_copy(update={"density_per_mm2": None, "density_per_megapixel": 7.5, "area_fraction": None})
    (doubt,) = parse(
        structured_report(header_of(image), segmented(image, quantities=unknown), COMMIT)
    ).get_image_measurement_groups()
    assert (values(doubt)["OBJECTDENSITY"], units(doubt)["OBJECTDENSITY"]) == (7.5, "{/megapixel}")
    assert "AREAFRACTION" not in values(doubt)


def test_outlines_lie_on_the_pixels_of_the_object() -> None:
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[10:15, 30:42] = True
    image = source()
    answer = segmented(image, objects=[box(30, 10, 42, 15)], doubtful_regions=[])
    (group,) = parse(structured_report(header_of(image), answer, COMMIT)).get_planar_roi_measurement_groups()
    outline = group.roi.value
    # A pixel is inside where its centre is: (column + 0.5, row + 0.5) as the standard puts the origin
    drawn = polygon2mask((ROWS, COLUMNS), outline[:, ::-1] - 0.5)
    assert np.array_equal(drawn, mask)
    assert not np.array_equal(polygon2mask((ROWS, COLUMNS), outline[:, ::-1] - 1.2), mask), "a shift is seen"


def test_coordinates_have_the_origin_of_the_standard() -> None:
    place = {"image_position": (7.0, -3.0, 5.0), "image_orientation": (1, 0, 0, 0, 1, 0), "pixel_spacing": (0.5, 0.25)}
    pixels = np.array([[0, 0], [5, 3]])  # column, row: whole numbers at the centres
    centres = pixels + 0.5  # ours: the corner is the origin
    expected = PixelToReferenceTransformer(**place)(pixels)
    graphic = to_graphic(centres, ROWS, COLUMNS)
    assert np.allclose(ImageToReferenceTransformer(**place)(graphic.astype(np.float64)), expected)
    assert not np.allclose(ImageToReferenceTransformer(**place)(graphic.astype(np.float64) - 0.5), expected)
    assert to_graphic([[-0.001, COLUMNS], [COLUMNS + 1e-3, ROWS]], ROWS, COLUMNS).tolist() == [[0, ROWS], [COLUMNS, ROWS]]


def test_the_largest_objects_are_outlined_and_the_rest_is_counted() -> None:
    image = source()
    objects = [box(x, y, x + 1 + (x + y) % 7, y + 1) for y in range(0, 60, 2) for x in (0, 10)]
    content = structured_report(header_of(image), segmented(image, objects=objects, doubtful_regions=[]), COMMIT)
    groups = parse(content).get_planar_roi_measurement_groups()
    areas = [values(group)["42798000"] for group in groups]
    assert len(areas) == OBJECTS < len(objects)
    assert areas == sorted((item.area for item in objects), reverse=True)[:OBJECTS]
    assert f"The {OBJECTS} largest of {len(objects)} objects are outlined here." in comments(content)


def test_a_part_of_the_image_is_said_to_be_one() -> None:
    image = source()
    part = structured_report(header_of(image), segmented(image, region=(10, 20, 30, 40)), COMMIT)
    assert "Only a part of the image was analysed: column 10, row 20, 30 columns, 40 rows." in comments(part)
    whole = structured_report(header_of(image), segmented(image), COMMIT)
    assert not any("part" in text for text in comments(whole))


def test_state_device_algorithm_and_scheme_are_declared() -> None:
    image = source()
    report = read_back(structured_report(header_of(image), classified(image), COMMIT))
    flags = (report.CompletionFlag, report.PreliminaryFlag, report.VerificationFlag)
    assert flags == ("COMPLETE", "PRELIMINARY", "UNVERIFIED")
    assert report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    (scheme,) = report.CodingSchemeIdentificationSequence
    assert (scheme.CodingSchemeDesignator, scheme.CodingSchemeResponsibleOrganization) == ("99OVERREAD", "Overread")
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (series,) = study.ReferencedSeriesSequence
    assert study.StudyInstanceUID == header_of(image).StudyInstanceUID
    assert series.SeriesInstanceUID == header_of(image).SeriesInstanceUID
    content = parse(report)
    device = content.get_observer_contexts(hd.CodedConcept("121007", "DCM", "Device"))[0].observer_identifying_attributes
    assert (device.name.split()[0], device.model_name, device.serial_number) == ("Overread", "tiny 1.0.0", "ab" * 32)
    group = content.get_image_measurement_groups()[0][0]
    texts = [item.TextValue for item in group.ContentSequence if item.ValueType == "TEXT"]
    assert texts[1:] == ["tiny", "1.0.0", "Overread", f"package_sha256={'ab' * 32}", f"triage_sha256={'cd' * 32}"]
    assert comments(report)[0] == "NOT FOR DIAGNOSIS. Tests. Not for: diagnosis"


def test_a_report_that_replaces_another_names_it() -> None:
    image = source()
    first = structured_report(header_of(image), classified(image), COMMIT)
    assert "PredecessorDocumentsSequence" not in first
    later = Commit("00" * 32, COMMIT.at)
    second = read_back(structured_report(header_of(image), classified(image, verdict="accept"), later, Written.of(first)))
    (study,) = second.PredecessorDocumentsSequence
    (series,) = study.ReferencedSeriesSequence
    (document,) = series.ReferencedSOPSequence
    assert study.StudyInstanceUID == second.StudyInstanceUID
    assert Written(series.SeriesInstanceUID, document.ReferencedSOPInstanceUID) == Written.of(first)
    assert document.ReferencedSOPClassUID == first.SOPClassUID
    assert second.SOPInstanceUID != first.SOPInstanceUID


def test_uids_are_known_before_an_object_is_made() -> None:
    image = source()
    report = structured_report(header_of(image), classified(image), COMMIT)
    assert uids_of(REPORT, classified(image), COMMIT) == Written.of(report)
    assert uids_of(MASK, classified(image), COMMIT) != Written.of(report)


def test_every_reason_has_a_code_and_codes_fit_and_are_documented() -> None:
    assert set(own.REASON_CODES) == set(REASONS)
    codes = [item for item in vars(own).values() if isinstance(item, tuple)]
    codes += [*own.REASON_CODES.values(), *own.VERDICTS.values()]
    assert len({value for value, _, _ in codes}) == len(codes)
    for value, scheme, meaning in codes:
        assert len(value) <= 16
        assert len(meaning) <= 64
        assert len(scheme) <= 16
    ours = {value: [meaning] for value, scheme, meaning in codes if scheme == own.SCHEME}
    assert documented("dicom-results.md", "code") == ours


def test_a_long_label_has_a_long_code() -> None:
    image = source()
    answer = segmented(image, object_label="n" * 80, doubtful_regions=[])
    group = parse(structured_report(header_of(image), answer, COMMIT)).get_planar_roi_measurement_groups()[0]
    assert group.finding_type.value == "LABEL:" + "n" * 80
    assert group.finding_type.meaning == "n" * 64


def test_the_answer_of_the_service(client: Any) -> None:
    phantom = chest_phantom()
    answer = Answer.model_validate_json(client.predict(phantom, "application/dicom").text)
    report = structured_report(header_of(read_image(phantom)), answer, COMMIT)
    doubt, pneumonia = parse(report).get_image_measurement_groups()
    assert values(doubt)["PREDICTEDLOSS"] == answer.predicted_loss
    assert values(pneumonia)["PROBABILITY"] == answer.findings[0].probability
    assert calls(doubt)[0] == ("VERDICT", "REFUSE"), "the example is a phantom"
    assert ("REASON", "PHANTOM") in calls(doubt)


@pytest.mark.parametrize("model", [Answer, SegmentationAnswer])
def test_no_number_of_an_answer_is_forgotten(model: Any) -> None:
    """Whoever adds a number to the answers must decide whether the report says it."""
    said = {"predicted_loss", "loss_percentile", "domain_distance", "domain_percentile", "entropy"}
    said |= {"predicted_loss_unseen"} if model is Answer else set()
    numbers = {name for name, field in model.model_fields.items() if "float" in str(field.annotation)}
    assert numbers == said
