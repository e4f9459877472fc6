"""Allocations: how is the budget shared over layers and heads? One file each."""
