"""Studies and replays on more than one machine: the driver owns ledger and records, workers run trials. Nothing here is
imported without ``--ray``."""
