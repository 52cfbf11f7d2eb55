"""Evaluations as documents: the page, the model card, the comparison, and the release of samples."""
