"""A first look at a model, as a marimo notebook: `marimo edit docs/notebook.py`."""

import marimo

app = marimo.App(width="medium", app_title="A first look at Slicebook")


@app.cell
def _():
    import marimo as mo
    import matplotlib.pyplot as plt
    import numpy as np

    import slicebook
    from slicebook.phantom.simulator import patient_volume

    return mo, np, patient_volume, plt, slicebook


@app.cell
def _(mo):
    mo.md("""
    # A first look

    `starter:generate` is a model that comes with Slicebook. It was trained on synthetic images only.
    """)


@app.cell
def _(np, patient_volume):
    phantom = patient_volume(7, 0, seed=1, slices=4)  # a synthetic patient
    scan = np.flip(phantom.image.T, 1).copy()  # slices, rows, columns
    return phantom, scan


@app.cell
def _(plt):
    def show(**images):
        """Draw slices side by side."""
        figure, cells = plt.subplots(1, len(images), figsize=(3 * len(images), 2), squeeze=False)
        for cell, (title, image) in zip(cells[0], images.items(), strict=True):
            cell.imshow(image, cmap="gray")
            cell.set_title(title.replace("_", " "), fontsize=9)
            cell.set_axis_off()
        figure.tight_layout()
        return figure

    return (show,)


@app.cell
def _(mo):
    mo.md("""
    ## Reconstruct

    `reconstruct` encodes a volume as tokens and decodes them. The result has the intensity of the scan.
    """)


@app.cell
def _(scan, show, slicebook):
    model = slicebook.load("starter:generate")
    copy = model.reconstruct(scan).slices()
    show(scan=scan[1], reconstruction=copy[1], difference=abs(copy[1] - scan[1]))
    return copy, model


@app.cell
def _(mo):
    mo.md("""
    ## Tokens, level by level

    Level 0 is the finest. Each number is the index of a code.
    """)


@app.cell
def _(model, scan, show):
    encoded = model.encode(scan)
    show(**{f"level_{level}": grid[1] for level, grid in enumerate(encoded.tokens)})
    return (encoded,)


@app.cell
def _(encoded, model, show):
    levels = len(encoded.tokens)
    partial = [model.decode(encoded, levels=count).slices()[1] for count in range(1, levels + 1)]
    show(**{f"{count}_of_{levels}_levels": image for count, image in enumerate(partial, start=1)})
    return (partial,)


@app.cell
def _(mo):
    mo.md("""
    ## Change a token, and decode

    A token of the finest level mostly affects the region around it.
    """)


@app.cell
def _(encoded, model, np, show):
    from dataclasses import replace

    changed = [grid.copy() for grid in encoded.tokens]
    rows, columns = changed[0].shape[1:]
    changed[0][:, rows // 2, columns // 2] = (changed[0][:, rows // 2, columns // 2] + 100) % 256
    edited = model.decode(replace(encoded, tokens=tuple(changed))).slices()
    difference = np.abs(edited - model.decode(encoded).slices())
    show(decoded=edited[1], what_changed=difference[1])
    return difference, edited


@app.cell
def _(mo):
    mo.md("""
    ## Generate

    The prior makes tokens from noise, and the decoders turn them into a slice and its mask. The same seed
    gives the same sample.
    """)


@app.cell
def _(model, show):
    samples = model.generate(2, seed=0)
    show(
        sample_0=samples[0].image.slices()[0],
        mask_0=samples[0].mask.slices()[0],
        sample_1=samples[1].image.slices()[0],
        mask_1=samples[1].mask.slices()[0],
    )
    return (samples,)


if __name__ == "__main__":
    app.run()
