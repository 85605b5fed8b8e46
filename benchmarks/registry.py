"""All cases by name; a system adds its own tuple."""

from . import lvdm

CASES = {case.name: case for case in (*lvdm.CASES,)}
