"""TAGI: a hypernetwork reads a task's instruction once and writes the LoRA adapter that makes a frozen LM solve it."""

__version__ = "0.1.0"
