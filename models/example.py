"""``overread example``: a drawn chest as DICOM and drawn tissue as PNG, so that there is something to send on any machine."""

from __future__ import annotations

import io
import uuid
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFilter
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian

from models.command import command_parser
from models.durable import write_whole

ROWS, COLUMNS, SPACING_MM = 1024, 1024, 0.35
FILE_NAME = "chest-phantom.dcm"
TISSUE_ROWS, TISSUE_COLUMNS = 512, 512
TISSUE_NAME = "tissue-phantom.png"
NUCLEI = 180
_EOSIN, _HAEMATOXYLIN = (233, 184, 208), (98, 66, 138)
"""Colours of stroma and of nuclei, RGB."""


def _uid(of: str) -> UID:
    """Make a UID from a UUID, which needs no registered root; fixed, so that the file's bytes are (PS3.5, B.2)."""
    return UID(f"2.25.{uuid.uuid5(uuid.NAMESPACE_URL, 'urn:overread:example:' + of).int}")


def chest_attenuation() -> NDArray[np.float64]:
    """Draw how much of the rays a frontal chest takes.

    Returns
    -------
    (ROWS, COLUMNS) float64, nats
        Much at the spine, the heart and the ribs; little in the lungs; below 0 in air, which counts as 0.
    """
    # float64: the last bit of exp() depends on the processor, and must not reach the rounded pixels
    attenuation = np.zeros((ROWS, COLUMNS))

    def add(shapes: list[list[float]], strength: float, blur: float, *, arcs: bool = False) -> None:
        layer = Pillow.new("L", (COLUMNS, ROWS), 0)
        pen = ImageDraw.Draw(layer)
        for left, top, right, bottom, *angles in shapes:
            box = (left, top, right, bottom)
            if arcs:
                pen.arc(box, angles[0], angles[1], fill=255, width=14)
            else:
                pen.ellipse(box, fill=255)
        soft = layer.filter(ImageFilter.GaussianBlur(blur))
        np.add(attenuation, np.asarray(soft, np.float64) * (strength / 255), out=attenuation)

    add([[60, 60, 964, 1400]], 1.6, 25)  # trunk
    add([[-100, 180, 330, 700], [694, 180, 1124, 700]], 0.5, 30)  # shoulders
    add([[380, -160, 644, 260]], 1.2, 20)  # neck
    add([[190, 170, 480, 800], [544, 170, 834, 780]], -1.2, 14)  # lungs
    add([[430, 440, 730, 800]], 0.8, 16)  # heart, to the image's right
    add([[150, 720, 520, 1100], [504, 750, 900, 1100]], 0.7, 10)  # domes of the diaphragm
    add([[478, -40, 546, 1200]], 0.6, 6)  # spine
    for row in range(9):
        top = 130 + 68 * row
        add([[130, top, 500, top + 210, 190, 345], [524, top, 894, top + 210, 195, 350]], 0.28, 2, arcs=True)
    add([[170, 110, 500, 260, 200, 330], [524, 110, 854, 260, 210, 340]], 0.4, 2, arcs=True)  # clavicles
    return attenuation


def draw_chest() -> NDArray[np.uint16]:
    """Draw a frontal chest in the manner of a radiograph.

    Returns
    -------
    (ROWS, COLUMNS) uint16, 0 to 4095
        Bright where X-rays are absorbed: spine, heart, ribs; dark lungs and air.
    """
    transmitted = np.exp(-np.clip(chest_attenuation(), 0, None))
    noise = np.random.Generator(np.random.PCG64(7)).normal(0, 0.006, transmitted.shape)
    return np.clip(np.rint(3900 * (1 - transmitted + noise)), 0, 4095).astype(np.uint16)


def chest_phantom() -> bytes:
    """Return a Digital X-Ray object with the drawn chest: fictitious patient, 12 of 16 bits, the same bytes each time."""
    pixels = draw_chest()
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = _uid("instance")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.ImplementationClassUID = _uid("implementation")
    meta.ImplementationVersionName = "OVERREAD"
    image = Dataset()
    image.file_meta = meta
    image.SOPClassUID = meta.MediaStorageSOPClassUID
    image.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    image.StudyInstanceUID, image.SeriesInstanceUID = _uid("study"), _uid("series")
    image.StudyDate = image.ContentDate = image.AcquisitionDate = "20240102"
    image.StudyTime = image.ContentTime = image.AcquisitionTime = "120000"
    image.PatientName, image.PatientID = "Phantom^Drawn", "PHANTOM-1"
    image.PatientBirthDate, image.PatientSex, image.PatientAge = "19640102", "O", "060Y"
    image.AccessionNumber = image.ReferringPhysicianName = image.StudyID = ""
    image.Manufacturer = "Overread"
    image.Modality, image.SeriesNumber, image.InstanceNumber = "DX", 1, 1
    image.PresentationIntentType = "FOR PRESENTATION"
    image.BodyPartExamined, image.ViewPosition, image.PatientOrientation = "CHEST", "PA", ["L", "F"]
    image.ImageLaterality, image.ImageType = "U", ["DERIVED", "PRIMARY"]
    image.DerivationDescription = "Drawn, not acquired"
    image.QualityControlSubject = "YES"  # a phantom, as it says itself
    image.BurnedInAnnotation, image.LossyImageCompression = "NO", "00"
    image.PixelIntensityRelationship, image.PixelIntensityRelationshipSign = "LOG", 1
    image.AcquisitionContextSequence = []
    image.PhotometricInterpretation, image.SamplesPerPixel = "MONOCHROME2", 1
    image.Rows, image.Columns = ROWS, COLUMNS
    image.PixelSpacing = image.ImagerPixelSpacing = [SPACING_MM, SPACING_MM]
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 12, 11, 0
    image.RescaleIntercept, image.RescaleSlope, image.RescaleType = 0, 1, "US"
    image.PresentationLUTShape, image.WindowCenter, image.WindowWidth = "IDENTITY", 2048, 4096
    chest, view = Dataset(), Dataset()
    chest.CodeValue, chest.CodingSchemeDesignator, chest.CodeMeaning = "51185008", "SCT", "Chest"
    view.CodeValue, view.CodingSchemeDesignator, view.CodeMeaning = "272479007", "SCT", "postero-anterior"
    view.ViewModifierCodeSequence = []
    image.AnatomicRegionSequence, image.ViewCodeSequence = [chest], [view]
    image.PixelData = pixels.astype("<u2").tobytes()
    file = io.BytesIO()
    image.save_as(file, enforce_file_format=True)
    return file.getvalue()


def draw_tissue() -> NDArray[np.uint8]:
    """Draw tissue in the manner of an H&E stain: :data:`NUCLEI` dark nuclei, some touching, on pink stroma with gaps.

    Returns
    -------
    (TISSUE_ROWS, TISSUE_COLUMNS, 3) uint8
        RGB.
    """
    rng = np.random.Generator(np.random.PCG64(11))
    size = (TISSUE_COLUMNS, TISSUE_ROWS)
    picture = Pillow.new("RGB", size, _EOSIN)
    pen = ImageDraw.Draw(picture)
    for _ in range(140):  # fibres
        x, y, length, shade = rng.integers((0, 0, 60, -22), (*size, 200, 14))
        left, top, right, bottom = x - length, y - length // 3, x + length, y + length // 3
        pen.arc((int(left), int(top), int(right), int(bottom)), 200, 340, tuple(int(c + shade) for c in _EOSIN), 5)
    for _ in range(7):  # gaps, where the slide shows through
        x, y, width, height = rng.integers((0, 0, 12, 20), (*size, 34, 60))
        pen.ellipse((int(x - width), int(y - height), int(x + width), int(y + height)), (246, 243, 245))
    picture = picture.filter(ImageFilter.GaussianBlur(3))
    for number in range(NUCLEI):
        x, y, long, short, angle, shade = rng.integers(
            (8, 8, 9, 6, 0, -16), (TISSUE_COLUMNS - 8, TISSUE_ROWS - 8, 14, 10, 180, 26)
        )
        colour = tuple(int(c + shade) for c in _HAEMATOXYLIN)
        stamp = Pillow.new("L", (64, 64), 0)
        ImageDraw.Draw(stamp).ellipse((32 - int(long), 32 - int(short), 32 + int(long), 32 + int(short)), 255)
        stamp = stamp.rotate(int(angle), Pillow.Resampling.BILINEAR)
        corner = (int(x) - 32, int(y) - 32)
        picture.paste(colour, corner, stamp.filter(ImageFilter.GaussianBlur(1)))
        if number % 2:  # a nucleolus
            ImageDraw.Draw(picture).ellipse((int(x) - 2, int(y) - 2, int(x) + 1, int(y) + 1), tuple(c - 28 for c in colour))
    # Whole numbers: the last bit of a normal variate could reach a pixel on another processor
    noise = rng.integers(-3, 4, (TISSUE_ROWS, TISSUE_COLUMNS, 3)) + rng.integers(-3, 4, (TISSUE_ROWS, TISSUE_COLUMNS, 3))
    return np.clip(np.asarray(picture.filter(ImageFilter.GaussianBlur(1)), np.int64) + noise, 0, 255).astype(np.uint8)


def tissue_phantom() -> bytes:
    """Return the drawn tissue as PNG: the same pixels each time, while its bytes depend on the library that packs them."""
    stream = io.BytesIO()
    Pillow.fromarray(draw_tissue()).save(stream, format="PNG")
    return stream.getvalue()


def write_examples(folder: Path) -> list[Path]:
    """Write the drawn chest and the drawn tissue into a folder that exists, and return where they are, in this order."""
    drawn = {FILE_NAME: chest_phantom, TISSUE_NAME: tissue_phantom}
    for name, draw in drawn.items():
        write_whole(folder / name, draw())  # the service takes one that is there for whole
    return [folder / name for name in drawn]


def main(argv: list[str]) -> int:
    """Write both phantoms to ``--out`` (default: the working directory), a set to train on where asked for; print their paths."""
    parser = command_parser(
        "example",
        "Write a drawn chest phantom as a DICOM file, and drawn tissue as a PNG.",
        "overread example --out .",
        "overread example --out runs --set runs/drawn   # docs/tutorial.md trains on it",
    )
    parser.add_argument("--out", type=Path, default=Path(), help="folder to write to")
    parser.add_argument(
        "--set",
        type=Path,
        metavar="FOLDER",
        help="draw small labelled chests of two hospitals too, all that overread train needs",
    )
    options = parser.parse_args(argv)
    options.out.mkdir(parents=True, exist_ok=True)
    written = write_examples(options.out)
    if options.set is not None:
        from models.example_set import write_set  # what it draws with takes long to import

        written.append(write_set(options.set, chest_attenuation()))
    for path in written:
        print(path)
    return 0
