"""Preparing data: everything between an import and a training, and what prediction shares with it."""
