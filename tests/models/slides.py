"""Whole slides made for tests: of any pixels, whole, valid, and easy to spoil."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import PIL.Image
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, encapsulate_extended
from pydicom.uid import UID, VLWholeSlideMicroscopyImageStorage

EXPLICIT, IMPLICIT, JPEG, JPEG2000, JPEG2000_LOSSY = (f"1.2.840.10008.1.2{end}" for end in (".1", "", ".4.50", ".4.90", ".4.91"))
TILE = 64
SPACING = 0.0005
"""Of the slides' pixels, mm: 40 times."""
Pixels = NDArray[np.uint8]


def tissue(folder: Path) -> Pixels:
    """The first image of stained tissue of the public data, (1000, 1000, 3)."""
    return np.asarray(PIL.Image.open(folder / "nuclei" / "images" / "TCGA-21-5784-01Z-00-DX1.jpg").convert("RGB"))


def noise(rows: int, columns: int, seed: int = 0) -> Pixels:
    """Colours of which no two neighbours are alike, so that a pixel out of place is seen."""
    return np.random.default_rng(seed).integers(0, 256, (rows, columns, 3), np.uint8)


def places(rows: int, columns: int, tile: int = TILE) -> list[tuple[int, int]]:
    """(top, left) of each tile, row by row."""
    return [(top, left) for top in range(0, rows, tile) for left in range(0, columns, tile)]


def tiles_of(pixels: Pixels, tile: int = TILE) -> list[Pixels]:
    """Cut into tiles, row by row; the last ones are filled up with white."""
    rows, columns = pixels.shape[:2]
    filled = np.full((-(-rows // tile) * tile, -(-columns // tile) * tile, 3), 255, np.uint8)
    filled[:rows, :columns] = pixels
    return [filled[top : top + tile, left : left + tile] for top, left in places(rows, columns, tile)]


def codestream(pixels: Pixels, syntax: str) -> bytes:
    if syntax == JPEG:
        stream = io.BytesIO()
        PIL.Image.fromarray(pixels).save(stream, "JPEG", quality=95, subsampling=1)
        return stream.getvalue()
    options: dict[str, Any] = {"level": 0, "reversible": True} if syntax == JPEG2000 else {"level": 45, "reversible": False}
    return bytes(imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", mct=True, colorspace="SRGB", **options))


def position(top: int, left: int, number: int = 0, undefined: bool = False) -> Dataset:
    """The functional groups of a tile."""
    place, content, group = Dataset(), Dataset(), Dataset()
    place.XOffsetInSlideCoordinateSystem = f"{left * SPACING:.6g}"
    place.YOffsetInSlideCoordinateSystem = f"{top * SPACING:.6g}"
    place.ZOffsetInSlideCoordinateSystem = "0"
    place.ColumnPositionInTotalImagePixelMatrix, place.RowPositionInTotalImagePixelMatrix = left + 1, top + 1
    content.DimensionIndexValues = [left // TILE + 1, top // TILE + 1]
    group.FrameContentSequence, group.PlanePositionSlideSequence = [content], [place]
    if undefined:
        for item in (group, place, content):
            item.is_undefined_length_sequence_item = True
        for element in group:
            element.is_undefined_length = True
    return group


def pixel_data(file: Dataset, streams: list[bytes], table: str, fragments: int = 1) -> None:
    """Put compressed frames into a slide: with a ``basic``, an ``extended`` or with no (``none``) offset table."""
    if table == "extended":
        file.PixelData, file.ExtendedOffsetTable, file.ExtendedOffsetTableLengths = encapsulate_extended(streams)
    else:
        file.PixelData = encapsulate(streams, fragments, has_bot=table == "basic")
    file["PixelData"].VR = "OB"
    file["PixelData"].is_undefined_length = True


def slide(
    pixels: Pixels,
    syntax: str = EXPLICIT,
    *,
    sparse: bool = False,
    kept: list[int] | None = None,
    table: str = "basic",
    fragments: int = 1,
    undefined: bool = False,
    **attributes: Any,
) -> Dataset:
    """Return a slide; ``kept`` are the tiles that a sparse one has, in the order of its frames; None removes an attribute."""
    rows, columns = pixels.shape[:2]
    order = list(range(len(places(rows, columns)))) if kept is None else kept
    tiles = tiles_of(pixels)
    file = Dataset()
    file.file_meta = FileMetaDataset()
    file.file_meta.TransferSyntaxUID = UID(syntax)
    file.file_meta.MediaStorageSOPClassUID = file.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = file.SOPInstanceUID = UID("2.25.401")
    _describe(file)
    file.Rows = file.Columns = TILE
    file.TotalPixelMatrixRows, file.TotalPixelMatrixColumns = rows, columns
    file.ImagedVolumeWidth, file.ImagedVolumeHeight, file.ImagedVolumeDepth = columns * SPACING, rows * SPACING, 0.001
    file.NumberOfFrames = len(order)
    file.DimensionOrganizationType = "TILED_SPARSE" if sparse else "TILED_FULL"
    if sparse:
        _dimensions(file)
        corners = places(rows, columns)
        file.PerFrameFunctionalGroupsSequence = [position(*corners[number], number, undefined) for number in order]
        file["PerFrameFunctionalGroupsSequence"].is_undefined_length = undefined
    else:
        file.NumberOfOpticalPaths, file.TotalPixelMatrixFocalPlanes = 1, 1
    if syntax in (EXPLICIT, IMPLICIT):
        data = b"".join(tiles[number].tobytes() for number in order)
        file.PixelData = data + bytes(len(data) % 2)
        file["PixelData"].VR = "OB" if syntax == EXPLICIT else "OW"
    else:
        lossy = syntax != JPEG2000
        file.PhotometricInterpretation = "YBR_FULL_422" if syntax == JPEG else "YBR_ICT" if lossy else "YBR_RCT"
        file.LossyImageCompression = "01" if lossy else "00"
        if lossy:
            file.LossyImageCompressionRatio = "4"
            file.LossyImageCompressionMethod = "ISO_10918_1" if syntax == JPEG else "ISO_15444_1"
        pixel_data(file, [codestream(tiles[number], syntax) for number in order], table, fragments)
    for keyword, value in attributes.items():
        if value is None:
            delattr(file, keyword)
        else:
            setattr(file, keyword, value)
    return file


def slide_bytes(pixels: Pixels, syntax: str = EXPLICIT, change: Callable[[Dataset], None] | None = None, **options: Any) -> bytes:
    """Return the file of a slide; ``change`` is called with the data set before."""
    file = slide(pixels, syntax, **options)
    if change is not None:
        change(file)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, file, enforce_file_format=True)
    return stream.getvalue()


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning
    return item


def _describe(file: Dataset) -> None:
    """All that the standard asks of a slide beside its pixels and sizes."""
    file.ImageType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    file.StudyDate = file.ContentDate = "20260101"
    file.StudyTime = file.ContentTime = "120000"
    file.AcquisitionDateTime = "20260101120000"
    file.AccessionNumber, file.Modality, file.Manufacturer, file.ManufacturerModelName = "A1", "SM", "Drawn", "Drawn slides"
    file.ReferringPhysicianName, file.PatientName, file.PatientID = "Sender^A", "Doe^Jane", "ID-1"
    file.PatientBirthDate, file.PatientSex = "19700101", "F"
    file.DeviceSerialNumber, file.SoftwareVersions, file.VolumetricProperties = "1", "1", "VOLUME"
    file.StudyInstanceUID, file.SeriesInstanceUID = UID("2.25.402"), UID("2.25.403")
    file.StudyID, file.SeriesNumber, file.InstanceNumber = "1", 1, 1
    file.FrameOfReferenceUID, file.PositionReferenceIndicator = UID("2.25.404"), "SLIDE_CORNER"
    file.SamplesPerPixel, file.PhotometricInterpretation, file.PlanarConfiguration = 3, "RGB", 0
    file.BitsAllocated, file.BitsStored, file.HighBit, file.PixelRepresentation = 8, 8, 7, 0
    file.BurnedInAnnotation, file.LossyImageCompression, file.SpecimenLabelInImage = "NO", "00", "NO"
    file.FocusMethod, file.ExtendedDepthOfField = "AUTO", "NO"
    file.ImageOrientationSlide = [1, 0, 0, 0, 1, 0]
    file.AcquisitionContextSequence, file.ContainerIdentifier = [], "C1"
    file.IssuerOfTheContainerIdentifierSequence = []
    file.ContainerTypeCodeSequence = [_code("433466003", "SCT", "Microscope slide")]
    specimen, origin, light, path, measures, kind = (Dataset() for _ in range(6))
    specimen.SpecimenIdentifier, specimen.SpecimenUID = "S1", UID("2.25.405")
    specimen.IssuerOfTheSpecimenIdentifierSequence, specimen.SpecimenPreparationSequence = [], []
    file.SpecimenDescriptionSequence = [specimen]
    origin.XOffsetInSlideCoordinateSystem, origin.YOffsetInSlideCoordinateSystem = "0", "0"
    file.TotalPixelMatrixOriginSequence = [origin]
    path.OpticalPathIdentifier = "1"
    path.IlluminationTypeCodeSequence = [_code("111744", "DCM", "Brightfield illumination")]
    path.IlluminationColorCodeSequence = [_code("414298005", "SCT", "Full Spectrum")]
    path.ICCProfile, path.ColorSpace = _srgb(), "SRGB"
    file.OpticalPathSequence = [path]
    measures.PixelSpacing, measures.SliceThickness = [SPACING, SPACING], 0.001
    kind.FrameType = ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    shared = Dataset()
    light.OpticalPathIdentifier = "1"
    shared.PixelMeasuresSequence, shared.WholeSlideMicroscopyImageFrameTypeSequence = [measures], [kind]
    shared.OpticalPathIdentificationSequence = [light]
    file.SharedFunctionalGroupsSequence = [shared]
    organisation = Dataset()
    organisation.DimensionOrganizationUID = UID("2.25.406")
    file.DimensionOrganizationSequence = [organisation]


def _dimensions(file: Dataset) -> None:
    """A sparse slide says what its frames are ordered by."""
    indices = []
    for pointer in (0x0048021E, 0x0048021F):
        index = Dataset()
        index.DimensionOrganizationUID, index.DimensionIndexPointer = UID("2.25.406"), pointer
        index.FunctionalGroupPointer = 0x0048021A
        indices.append(index)
    file.DimensionIndexSequence = indices


def _srgb() -> bytes:
    from PIL import ImageCms

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    made = np.array([2026, 1, 1, 0, 0, 0], ">u2").tobytes()  # not now, so that a slide is the same whenever it is drawn
    return profile[:24] + made + profile[36:] + bytes(len(profile) % 2)
