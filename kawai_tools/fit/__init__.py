"""Will it run here? What a model needs, from its GGUF header alone, against the memory of a machine.

Pure: nothing is read, asked or measured here. ``families.py`` says what llama.cpp keeps for which
architecture, ``shapes.py`` reads that off a header, ``needs.py`` adds it up, ``judging.py`` compares.
"""

from kawai_tools.fit.judging import Fit, Gpu, Machine, guess, judge, needed
from kawai_tools.fit.loads import Load
from kawai_tools.fit.needs import Model, Need

__all__ = ["Fit", "Gpu", "Load", "Machine", "Model", "Need", "guess", "judge", "needed"]
