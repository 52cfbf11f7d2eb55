"""The Python interface: `slicebook.load`, `slicebook.Model` and `slicebook.evaluate`.

Import the names from `slicebook`. Results are those of the command of the same name, bit for bit.
"""
