"""``ucseg-export``: parsing and printing only."""
