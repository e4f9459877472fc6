"""Representations: what remains of what is not kept, and in what form? One file each."""
