"""Scorers: how much is each resident entry worth? One file each."""
