"""``ucseg-serve``: parsing and printing only."""
