"""cask-eval: pre-registered, matched-memory, exactly analysed evaluation of KV-cache compression."""

__version__ = "0.5.0"
