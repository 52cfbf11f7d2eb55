"""What tests of hostile files and others share."""

import nibabel as nib
import numpy as np


def nifti_bytes(array=None, **fields):
    """Return a NIfTI-1 file with header fields set to what they should not be."""
    array = np.arange(60, dtype=np.int16).reshape(4, 5, 3) if array is None else array
    image = nib.Nifti1Image(array, np.diag([1.0, 1, 3, 1]))
    content = bytearray(image.to_bytes())
    header = nib.Nifti1Header(bytes(content[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    content[:348] = header.binaryblock
    return bytes(content)
