"""What tests of checkpoint and others share."""

from slicebook.io import tensors as tensor_file


def resealed(path, **changes):
    """Write a model anew with some of its metadata changed, its hash kept right: the work of a liar."""
    tensors, info = tensor_file.read_tensors(path)
    tensor_file.write_tensors(path, tensors, info | changes)
