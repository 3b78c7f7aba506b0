"""User code, as far as the benchmark is concerned: deployed by path, never imported from here."""
