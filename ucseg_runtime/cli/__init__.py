"""The ``ucseg`` command: parses, calls one function, prints a summary. No logic of its own."""
