"""All cases by name; a system adds its own tuple."""

from . import higen, lvdm

CASES = {case.name: case for case in (*lvdm.CASES, *higen.CASES)}
