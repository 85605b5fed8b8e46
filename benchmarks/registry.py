"""All cases by name; a system adds its own tuple."""

from . import harivo, higen, lvdm, versvideo

CASES = {case.name: case for case in (*lvdm.CASES, *higen.CASES, *harivo.CASES, *versvideo.CASES)}
