"""Pages that people look at: one file of HTML for each case, which opens without a network, and one for a batch."""
