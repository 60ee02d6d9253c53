"""Training of UC-Seg trios."""
