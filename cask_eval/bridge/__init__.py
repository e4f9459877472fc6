"""The output bridge: what compression changed in a model's outputs, pair by pair, against a reference's outputs.

Texts are compared as texts, as answers and by the task's own metric (docs/BRIDGE.md). Nothing here needs torch
but the sentence embeddings, which are loaded where they are asked for.
"""
