"""An evaluation as one page that needs nothing else: no script, no request, all pictures inside.

The page is drawn from `report.json` and the pictures beside it, so that it can be drawn again without the
model.
"""
