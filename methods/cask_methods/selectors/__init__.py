"""Selectors: which set do we keep, given scores? One file each."""
