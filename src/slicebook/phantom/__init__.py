"""Synthetic MR of a male pelvis with label masks, written as NIfTI data sets."""
