"""The studio: a page in the browser to look at, generate, inpaint and judge slices with one model."""
