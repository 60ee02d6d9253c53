"""``ucseg-train``: parsing and printing only."""
