"""The label values of the phantom's masks, numbered as in the HipMRI study."""

BACKGROUND, BODY, BONE, BLADDER, RECTUM, PROSTATE = range(6)
