"""Triton kernels of scorers and selectors. Imported only where `cask_eval.engine.kernels` says that they are in use."""
