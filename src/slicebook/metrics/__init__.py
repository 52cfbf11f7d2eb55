"""Measures of images, as pure functions on arrays."""
