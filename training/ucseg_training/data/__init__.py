"""Cases on the model grid: how they are made, cut and varied."""
