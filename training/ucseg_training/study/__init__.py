"""The study: what each part of the method adds, measured by several runs of the same size on the same data."""
