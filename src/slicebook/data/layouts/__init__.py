"""Layouts of data sets: which files belong to which patient. Opens no image."""
