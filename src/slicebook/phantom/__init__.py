"""A procedural male pelvis with label masks, written as NIfTI data sets."""
