"""Files: NIfTI, DICOM, tensors and tokens, read defensively and written atomically."""
