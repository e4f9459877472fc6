"""KV-compression methods: the systems under test. Imports only the engine's contract, never the study side."""
