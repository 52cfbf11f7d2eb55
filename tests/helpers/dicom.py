"""What tests of dicom and others share."""

import numpy as np
from pydicom import Dataset
from pydicom.dataset import FileMetaDataset
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


CORONAL = [1.0, 0.0, 0.0, 0.0, 0.0, -1.0]


def slice_of(pixels, position, *, series="1.2.3.4", orientation=AXIAL, **tags):
    """Return a classic MR slice: 4 mm between rows, 2 mm between columns, 3 mm thick."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = MRImageStorage
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.PatientID, dataset.PatientName = "SECRET-ID", "Secret^Name"
    dataset.SeriesInstanceUID, dataset.SeriesDescription = series, "t2 of Secret Name"
    dataset.AcquisitionNumber = 1
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.ImageOrientationPatient = orientation
    dataset.ImagePositionPatient = list(position)
    dataset.PixelSpacing, dataset.SliceThickness = [4, 2], 3
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    for keyword, value in tags.items():
        if value is None:
            delattr(dataset, keyword)
        else:
            setattr(dataset, keyword, value)
    return dataset


def save(dataset, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


def pixels_of(seed, dtype=np.uint16, shape=(4, 6)):
    return np.random.default_rng(seed).integers(0, 100, shape).astype(dtype)


def stack(folder, heights=(0, 3, 6), **tags):
    """Save one slice a height, the pixels numbered by the order given."""
    return [
        save(slice_of(pixels_of(i), (10, 20, height), **tags), folder / f"{i}.dcm")
        for i, height in enumerate(heights)
    ]


def enhanced(heights=(6, 0, 3)):
    """Return an enhanced MR file: one frame a height, with its own slope; the rest is shared."""
    frames = [pixels_of(i) for i in range(len(heights))]
    dataset = slice_of(np.concatenate(frames), (0, 0, 0), SOPClassUID=EnhancedMRImageStorage)
    dataset.Rows, dataset.NumberOfFrames = 4, len(heights)
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing", "SliceThickness"):
        delattr(dataset, keyword)
    orientation, measures, shared = Dataset(), Dataset(), Dataset()
    orientation.ImageOrientationPatient = AXIAL
    measures.PixelSpacing, measures.SpacingBetweenSlices = [4, 2], 3
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    dataset.SharedFunctionalGroupsSequence = [shared]
    dataset.PerFrameFunctionalGroupsSequence = []
    for i, height in enumerate(heights):
        group, position, rescale = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0, 0, height]
        rescale.RescaleSlope, rescale.RescaleIntercept = i + 1, 0
        group.PlanePositionSequence, group.PixelValueTransformationSequence = [position], [rescale]
        dataset.PerFrameFunctionalGroupsSequence.append(group)
    return dataset
