"""From a folder of volumes to batches of slices."""
