"""The slot engine: real Hugging Face decoders over physically evicted caches, many sequences at once.

Importable with torch and transformers alone.
"""
