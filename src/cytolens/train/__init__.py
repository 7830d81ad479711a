"""Training: the only place where networks learn. Needs the extra "train"."""
