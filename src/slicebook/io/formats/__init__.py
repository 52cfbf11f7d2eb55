"""Readers of further formats: MetaImage and NRRD, pictures, DICOM SEG."""
