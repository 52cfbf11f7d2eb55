"""Trained models applied: reconstruct, generate, inpaint, anomaly maps."""
