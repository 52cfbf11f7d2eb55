"""What of a DICOM series description is shown: words of scan protocols. Others may name a patient."""

from __future__ import annotations

import re

HIDDEN = "…"
_LISTED = """
2d 3d acq adc angio ankle apparent arterial asl ax axial b0 bh blade body bold brain breast breath bssfp
bval calc cardiac cartilage chest ciss coil contrast cor coronal cube dark dce delayed diff diffusion dir
dixon dti dual dwi dyn dynamic echo ep ep2d epi epi2d fast fat fatsat fb fiesta flair flash fov fs fse gd ge
grad gradient gre gs haste head heart highres hip hires hr in ir iso joint keyhole knee lava liver localizer
lumbar mag magnitude map max mdixon me mean medic mip mm mpr mprage mr mra mrcp mri ms multi nativ native
neck nex no ob obl oblique of opp opposed out pc pd pelvis perf perfusion ph phase pilot planes portal post
pre propeller prostata prostate qsm radial raw recon rectum resolve rest rf rst sag sagittal se sense series
short shoulder single slab slice small soft sp space spair spc spectro spectroscopy spgr spin spine spir ss
ssfp stack star std stir sub supine swi te temporal thin thk thoracic ti tir tirm tof tr tra trace tracew
trans transversal transverse true trufi trufisp tse turbo uterus var venous vfa vibe vista vol volume water
wb whole wip with without
"""
WORDS = frozenset(_LISTED.split())
_RUNS = re.compile(r"[^\W_]+")
_PARTS = re.compile(r"[^\W\d_]+|\d+")
_NUMBER = r"(?:0|[1-9][0-9]{0,2})"
_SHAPES = re.compile(rf"{_NUMBER}|[a-z][0-9]|b(?:{_NUMBER}|[1-9][0-9][05]0)")
"""Numbers alone, a letter with a digit (`t2`), and b-values: no date, year or number of four digits."""


def shown_words(description: str, patient_id: str) -> str:
    """Return a description in which every word that is not of a protocol is hidden.

    Shown are the words of `WORDS`, also joined to a short number (`fov200`), and what `_SHAPES` matches. A
    word of the patient's ID is hidden whatever it is.

    >>> shown_words("t2_tse_tra_320 Miller, b1400", "P-0017")
    't2_tse_tra_320 …, b1400'
    """
    own = {run.lower() for run in _RUNS.findall(patient_id)}

    def shown(found: re.Match[str]) -> str:
        run = found[0].lower()
        known = run in WORDS or _SHAPES.fullmatch(run) or _is_joined(_PARTS.findall(run))
        return found[0] if known and run not in own and not own & set(_PARTS.findall(run)) else HIDDEN

    return _RUNS.sub(shown, description)


def _is_joined(parts: list[str]) -> bool:
    """Whether parts are words of protocols and short numbers, such as `fov` and `200`."""
    return all(re.fullmatch(_NUMBER, part) or part in WORDS for part in parts)
