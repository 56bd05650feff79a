"""Mean tokens of real tasks, which the benchmark measures at and the estimates reckon with."""

from __future__ import annotations

DEFINITION, DEMONSTRATIONS, INPUT, OUTPUT = 93, 347, 109, 14
"""Mean tokens of SNI's test tasks: the definition, the definition with two demonstrations, an input, an output."""

INSTRUCTIONS = {"def": DEFINITION, "def+2pos": DEMONSTRATIONS}
"""Mean tokens of an instruction by setting."""
