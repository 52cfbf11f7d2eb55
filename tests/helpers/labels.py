"""What tests of labels and others share."""

from dataclasses import replace

import torch
from helpers.training import prepared_folder

from slicebook.data.manifest import read_info, read_manifest, write_info, write_manifest

VALUES = (0, 1, 5)


def masks(count, rows=32, columns=32, seed=0):
    """Discs of label 1 with a smaller one of label 5 inside, anywhere."""
    draw = torch.Generator().manual_seed(seed)
    y, x = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    batch = torch.zeros(count, rows, columns, dtype=torch.uint8)
    for mask in batch:
        row, column = (torch.rand(2, generator=draw) * torch.tensor([rows, columns]) / 2).tolist()
        distance = (y - rows / 4 - row).square() + (x - columns / 4 - column).square()
        mask[distance < 81] = 1
        mask[distance < 16] = 5
    return batch


def labelled_folder(folder, without=()):
    """A prepared folder of five patients of four slices with masks, but for some of its slices."""
    prepared_folder(folder)
    drawn = masks(20)
    records = [
        replace(record, label_offset=-1 if record.index in without else record.offset)
        for record in read_manifest(folder)
    ]
    flat = bytearray(drawn.numpy().tobytes())
    for record in reversed(records):
        if record.label_offset < 0:
            del flat[record.offset : record.offset + 1024]
    kept = [record for record in records if record.label_offset >= 0]
    offsets = {record.index: 1024 * place for place, record in enumerate(kept)}
    (folder / "labels.u8").write_bytes(bytes(flat))
    write_manifest(folder, [replace(r, label_offset=offsets.get(r.index, -1)) for r in records])
    write_info(folder, read_info(folder).model_copy(update={"label_values": VALUES if kept else ()}))
    return folder
