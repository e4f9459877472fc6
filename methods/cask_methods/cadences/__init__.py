"""Cadences: when does an event happen? One file each."""
